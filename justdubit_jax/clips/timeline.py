"""Frames and their times: the rate that the stamps themselves have, and frames at another rate."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

_NOMINAL = [
    *map(Fraction, (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)),
    *(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240)),
    Fraction(25, 2),
]


class Timed(NamedTuple):
    """A picture and from when it is shown, in seconds after the first."""

    time: Fraction
    shown: np.ndarray


def own_rate(
    times: Sequence[Fraction], tick: Fraction, declared: Sequence[Fraction]
) -> Fraction | None:
    """Frames per second by time stamps in ascending order, which are multiples of `tick` seconds.

    What most frames keep is the rate: a hole, a longer last frame or a header's clock do not move
    it. Where they keep none (3:2 pulldown, recordings of a screen) it is the mean. A declared rate
    or a usual one is taken where the stamps are on its grid; None where there are no stamps.
    """
    steps = np.diff(np.array([float(time) for time in times]))
    steps = steps[steps > 0]
    if not len(steps):
        return next(iter(declared), None)
    middle = np.median(steps)
    alike = steps[np.abs(steps - middle) <= max(middle / 4, 1.5 * float(tick))]
    step = alike.mean() if len(alike) >= 0.75 * len(steps) else steps.mean()
    since = np.array([float(time - times[0]) for time in times])
    for rate in (*declared, *sorted(_NOMINAL, key=lambda rate: abs(float(rate) * step - 1))):
        period = 1 / float(rate)
        off = np.abs(since - np.round(since / period) * period)
        near = off <= float(tick) * 1.01 + 0.01 * period
        if abs(step / period - 1) < 0.004 and near.mean() > 0.95:
            return rate
    return Fraction(1 / step).limit_denominator(1001)


def on_grid(time: Fraction, rate: Fraction, tick: Fraction) -> Fraction:
    """The time of the frame at a constant rate of which `time` may be the rounded stamp.

    Matroska rounds to milliseconds, and comparisons of such times would come out at random.
    """
    exact = round(time * rate) / rate
    return exact if abs(exact - time) <= tick else time


def in_order(
    frames: Iterable[Timed], rate: Fraction, limit: int | None
) -> tuple[list[Timed], Iterator[Timed], bool]:
    """The first frames up to `limit`, what is left, and whether one is off its place.

    A frame's place is its index / rate; off is by more than half a frame. The list ends with the
    first frame that is off.
    """
    rest, taken = iter(frames), []
    for frame in itertools.islice(rest, limit):
        taken.append(frame)
        if abs(frame.time * rate - (len(taken) - 1)) > Fraction(1, 2):
            return taken, rest, True
    return taken, rest, False


def at_rate(frames: Iterable[Timed], rate: Fraction, own: Fraction) -> Iterator[Timed]:
    """Of frames with their times the nearest to each k / rate; of two as near, the earlier.

    The last frame lasts 1 / own.
    """
    index, last = 0, None
    for frame in frames:
        while last is not None and index / rate <= (last.time + frame.time) / 2:
            yield Timed(index / rate, last.shown)
            index += 1
        last = frame
    while last is not None and index < round((last.time + 1 / own) * rate):
        yield Timed(index / rate, last.shown)
        index += 1


def same_rate(rate: Fraction, other: Fraction, frames: int) -> bool:
    """Whether clips of two rates drift apart by less than half a frame over so many frames."""
    return abs(other / rate - 1) * frames < Fraction(1, 2)
