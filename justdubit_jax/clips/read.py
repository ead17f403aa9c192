"""Clips on disk as numpy arrays: the one road on which dub and preprocess read a clip.

A person's file that cannot be used raises InputError, `PATH: reason`. Pictures come upright, with
square pixels, in BT.709's colours, at a constant rate; what was done to them is in `Clip.facts`.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from justdubit_jax.clips.colour import Alpha, Colour, has_alpha
from justdubit_jax.clips.container import declared_end, opened, seconds
from justdubit_jax.clips.facts import ClipFacts
from justdubit_jax.clips.frames import Presented, Source, is_image, scan, timed_frames
from justdubit_jax.clips.geometry import orientation, shown_size
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.clips.sound import read_audio as read_audio
from justdubit_jax.clips.timeline import Timed, at_rate, in_order, own_rate, same_rate
from justdubit_jax.clips.tracks import video_track
from justdubit_jax.errors import InputError, about


@dataclasses.dataclass(frozen=True)
class Clip:
    """The frames of a video, RGB, at a constant rate of `fps`."""

    frames: UInt8[np.ndarray, "f y x 3"]
    fps: Fraction
    start: Fraction | None  # of its first frame on the file's clock, where it has one
    facts: ClipFacts

    @property
    def seconds(self) -> Fraction:
        """Exact duration."""
        return len(self.frames) / self.fps


class Shape(NamedTuple):
    """To what a clip is brought; None: all of its frames."""

    frames: int | None
    height: int
    width: int


# From how many frames there are and the size in which they are shown (height, width).
Choose = Callable[[int, int, int], Shape]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file's header says; `frames` and `seconds` are None where it does not say."""

    frames: int | None
    fps: Fraction
    height: int
    width: int
    has_audio: bool
    seconds: float | None


def probe(path: str | Path) -> Probe:
    """Read a video's or an image's header, decoding nothing. Sizes are as stored."""
    path = Path(path)
    with opened(path) as file:
        stream, length = video_track(path, file.container), None
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        if is_image(path):
            rate = Fraction(1)
        if not rate:
            raise InputError(f"{path}: no frame rate")
        fps, frames = Fraction(rate.numerator, rate.denominator), 1 if is_image(path) else None
        if frames is None and (end := declared_end(stream)) is not None:
            length = end - seconds(stream.start_time, stream.time_base)
            frames = round(length * fps)
        has_audio = bool(file.container.streams.audio)
        return Probe(frames, fps, stream.height, stream.width, has_audio, length)


class Picture(NamedTuple):
    """A frame of a video as it is shown: RGB, upright, with square pixels."""

    time: Fraction  # seconds after the first frame
    pixels: UInt8[np.ndarray, "y x 3"]


def iterate_pictures(path: str | Path) -> Generator[Picture]:
    """The frames of a video of constant or variable rate, in the order of presentation.

    One frame at a time is decoded. Raises InputError for files that are unreadable, damaged or
    cut off, when it comes to that place.
    """
    source, look = scan(Path(path)), None
    with contextlib.closing(timed_frames(source)) as frames:
        for frame in frames:
            look = look or Look(source, frame)
            yield Picture(frame.time, look.picture(frame, look.size))


def read_video(path: str | Path, max_frames: int | None = None) -> Clip:
    """The first `max_frames` frames (default: all) in their own size, see `read_clip`.

    A .png or .jpg is a clip of one frame at 1 fps.
    """
    return read_clip(path, lambda _, height, width: Shape(max_frames, height, width), max_frames)


def read_clip(
    path: str | Path,
    choose: Choose,
    wanted: int | None = None,
    rate: Fraction | None = None,
    strict: bool = False,
    is_mask: bool = False,
) -> Clip:
    """A clip in the shape that is chosen for it, each frame scaled when it is decoded.

    At most `wanted` frames are asked for, so the file is looked at no further. Without `rate` the
    clip keeps the rate of its own stamps; it is resampled in time where a frame that is used is off
    its place by more than half a frame, or, if `strict`, refused. A rate that drifts by less than
    half a frame in all counts as the same. Of a mask an alpha channel in use is taken. Fewer frames
    than chosen come where the file has no more. Raises InputError for files that are unreadable,
    damaged or cut off.
    """
    path = Path(path)
    source = scan(path, wanted, rate)
    count = source.frames
    while True:
        clip, asked, times = _taken(source, choose, count, rate, is_mask)
        own = own_rate(times, source.tick, [source.rate]) or source.rate
        if clip.facts.variable and not Fraction(2, 3) < own / source.rate < Fraction(3, 2):
            # Packets were fields of frames: the frames know better.
            source = dataclasses.replace(source, rate=own)
            continue
        if clip.facts.variable and strict:
            raise InputError(f"{path}: {_off_its_place(times, source.rate)}")
        # Packets that cannot be decoded were counted: choose again by what there is.
        if asked is None or len(clip.frames) >= min(asked, count):
            return clip
        count = len(clip.frames)


def _taken(
    source: Source, choose: Choose, count: int, rate: Fraction | None, is_mask: bool
) -> tuple[Clip, int | None, list[Fraction]]:
    """The clip, how many frames were chosen, and the times of those that were decoded."""
    path, own, target, times = source.path, source.rate, rate or source.rate, []
    with contextlib.closing(timed_frames(source)) as frames:
        first = next(frames)
        look = Look(source, first, is_mask)
        with about(path):
            shape = choose(count, *look.size)
        size = shape.height, shape.width

        def pictures() -> Iterator[Timed]:
            for frame in itertools.chain([first], frames):
                times.append(frame.time)
                yield Timed(frame.time, look.picture(frame, size))

        taken, rest, off = in_order(pictures(), own, shape.frames)
        resampled = off or not same_rate(own, target, shape.frames or count)
        if resampled:
            everything = at_rate(itertools.chain(taken, rest), target, own)
            taken = list(itertools.islice(everything, shape.frames))
    pixels = np.stack([picture for _, picture in taken])
    facts = look.facts(len(pixels), size, target, off, resampled)
    return Clip(pixels, target, first.start, facts), shape.frames, times


def _off_its_place(times: Sequence[Fraction], rate: Fraction) -> str:
    """What is wrong with the first frame that is off its place."""
    index, time = next((i, t) for i, t in enumerate(times) if abs(t * rate - i) > Fraction(1, 2))
    return (
        f"frame {index + 1} is at {float(time):.3f} s, at {float(rate):g} fps its place is "
        f"{float(index / rate):.3f} s: frames are missing, or the rate is variable"
    )


class Look:
    """How the frames of a clip are shown, by the first of them."""

    def __init__(self, source: Source, presented: Presented, is_mask: bool = False):
        """Raises InputError for colours that cannot be converted."""
        frame, self._source, self._deinterlaced = presented.frame, source, False
        self._stored, self._orientation = (frame.width, frame.height), orientation(frame)
        with about(source.path):
            if is_mask and source.hidden_alpha and not has_alpha(frame):
                raise InputError("the mask is in an alpha channel that is not decoded here (VP9)")
            use_alpha = is_mask and Alpha.in_use(frame)
            self._colour = Alpha() if use_alpha else Colour(frame, source.tag)
        height, width, aspect = frame.height, frame.width, source.pixel_aspect
        if self._orientation.transpose:
            height, width, aspect = width, height, 1 / aspect
        self._aspect = aspect
        self.size = shown_size(height, width, aspect)

    def picture(
        self, presented: Presented, size: tuple[int, int]
    ) -> UInt8[np.ndarray, "_height _width 3"]:
        """A frame as it is shown, scaled and cropped to a size (height, width)."""
        self._deinterlaced |= presented.deinterlaced
        upright = self._orientation.apply(self._colour.rgb(presented.frame))
        if upright.shape[:2] == size and self._aspect == 1:
            return np.ascontiguousarray(upright)
        return resize_and_crop(upright[None], *size, self._aspect)[0]

    def facts(
        self, frames: int, size: tuple[int, int], rate: Fraction, variable: bool, resampled: bool
    ) -> ClipFacts:
        """What was decided for so many frames of a size (height, width) at a rate."""
        width, height = self._stored
        return ClipFacts(
            frames=frames,
            track=self._source.track,
            width=width,
            height=height,
            pixel_aspect=self._source.pixel_aspect,
            turned=self._orientation.turned,
            mirrored=self._orientation.mirrored,
            deinterlaced=self._deinterlaced,
            colour=self._colour.name,
            own_rate=self._source.rate,
            rate=rate,
            variable=variable,
            resampled=resampled,
            shown=(self.size[1], self.size[0]),
            size=(size[1], size[0]),
        )
