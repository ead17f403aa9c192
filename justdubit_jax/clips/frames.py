"""The frames of a video in the order of presentation, each with its own time."""

import contextlib
import dataclasses
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from av.error import FFmpegError
from av.video import VideoFrame, VideoStream

from justdubit_jax.clips.container import Opened, declared_end, decoded, opened
from justdubit_jax.clips.geometry import deinterlaced, pixel_aspect
from justdubit_jax.clips.timeline import on_grid, own_rate
from justdubit_jax.clips.tracks import track_name, video_track
from justdubit_jax.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg")
_MAX_RATE = 240  # above it, stamps are not those of pictures
_MARGIN = 64  # packets beyond the frames that are wanted: they come in the order of decoding


@dataclasses.dataclass(frozen=True)
class Source:
    """A clip as its packets tell it: nothing is decoded for it."""

    path: Path
    track: str
    tag: str  # the codec's, as the container has it
    rate: Fraction  # by the frames' time stamps
    tick: Fraction  # s, the unit of the stamps
    frames: int  # that can be taken; fewer than there are where more were not wanted
    has_keyframes: bool  # marked as such
    start: Fraction | None  # s, the first stamp; None where there are none
    pixel_aspect: Fraction
    hidden_alpha: bool  # a WebM's, which not every decoder gives


class Presented(NamedTuple):
    """A frame and when it is shown."""

    time: Fraction  # s after the first frame
    frame: VideoFrame
    start: Fraction | None  # s, of the first frame on the file's clock, which its sound has too
    deinterlaced: bool


def scan(path: Path, wanted: int | None = None, rate: Fraction | None = None) -> Source:
    """Look at a clip's packets, as many as `wanted` frames (at a rate, if given) need.

    Raises InputError for files that are no clips, and where neither stamps nor the header give a
    rate.
    """
    with opened(path) as file:
        stream = video_track(path, file.container)
        tick = _tick(stream)
        times, has_keyframes = _stamps(file, stream, wanted, rate)
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        declared = [Fraction(r.numerator, r.denominator) for r in rates if r]
        own = Fraction(1) if is_image(path) else own_rate(times, tick, declared)
        if own is None:
            raise InputError(f"{path}: no frame rate")
        if own > _MAX_RATE and rate is None:
            raise InputError(
                f"{path}: its time stamps say {float(own):g} frames per second; give a frame rate"
            )
        count, places = len(times), [(time - times[0]) * own for time in times]
        if rate is not None or any(abs(x - i) > 0.5 for i, x in enumerate(places)):
            count = round((places[-1] + 1) / own * (rate or own)) if places else 0
        return Source(
            path=path,
            track=track_name(file.container, stream),
            tag=str(stream.codec_tag or ""),
            rate=own,
            tick=tick,
            frames=1 if is_image(path) else count,
            has_keyframes=has_keyframes,
            start=times[0] if times else None,
            pixel_aspect=pixel_aspect(stream),
            hidden_alpha=stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE"))
            == "1",
        )


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def timed_frames(source: Source) -> Generator[Presented]:
    """The frames in the order of presentation.

    One frame at a time is decoded, progressive as they come out. Raises InputError for files that
    are damaged, cut off or change the size of their picture, when it comes to that place.
    """
    path, first = source.path, None
    count, time, longest, last = 0, Fraction(0), 1 / source.rate, Fraction(0)
    with opened(path) as file:
        stream = video_track(path, file.container)
        for count, (stamp, frame, woven) in enumerate(_stamped(file, stream, source), 1):
            first = (stamp, frame.width, frame.height) if first is None else first
            previous, time = time, on_grid(stamp - first[0], source.rate, source.tick)
            if (frame.width, frame.height) != first[1:]:
                raise InputError(f"{path}: the size of the picture changes at frame {count}")
            if time < previous:
                raise InputError(
                    f"{path}: its time stamps go back at frame {count}, from "
                    f"{float(previous):.2f} s to {float(time):.2f} s"
                )
            # A rate may vary, but no more than a second is taken for that.
            if time - previous > max(1, Fraction(3, 2) / source.rate):
                raise InputError(
                    f"{path}: damaged: no frames for {float(time - previous):.1f} s, from "
                    f"{float(previous):.1f} s on"
                )
            longest = max(longest, time - previous)
            last = (frame.duration or 0) * source.tick
            yield Presented(time, frame, None if source.start is None else first[0], woven)
        if first is None:
            raise InputError(f"{path}: no frames")
        end = declared_end(stream, file.window(stream))
        reached = first[0] + time + max(1 / source.rate, last)
        # One frame of tolerance and a half: some muxers count one more than they write.
        if source.start is not None and end is not None and reached < end - 1.5 * longest:
            raise InputError(
                f"{path}: its video ends at {float(reached):.2f} s instead of {end:.2f} s: "
                "cut off or damaged"
            )


def first_time(path: Path) -> Fraction | None:
    """When a file's first picture is shown, on the clock that its sound has; None without one."""
    with opened(path) as file:
        if not file.container.streams.video:
            return None
    source = scan(path, 1)
    with opened(path) as file:
        stream = video_track(path, file.container)
        with contextlib.closing(_stamped(file, stream, source)) as frames:
            return next((stamp for stamp, _, _ in frames), None)


def _tick(stream: VideoStream) -> Fraction:
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)


def _has_own_stamps(file: Opened) -> bool:
    """Whether packets say when they are shown; those of an AVI say when they are decoded."""
    return file.container.format.name != "avi"


def _stamps(
    file: Opened, stream: VideoStream, wanted: int | None, rate: Fraction | None
) -> tuple[list[Fraction], bool]:
    """Times of the packets from the first keyframe on that are shown, ascending.

    And whether there is a keyframe.
    """
    tick, window, own = _tick(stream), file.window(stream), _has_own_stamps(file)
    times, key = [], None
    # A file that was cut off is read as far as it goes; decoding says where that is.
    with contextlib.suppress(FFmpegError):
        for packet in file.container.demux(stream):
            stamp = packet.pts if own else packet.dts
            if stamp is None:
                continue
            time = stamp * tick
            if packet.is_keyframe and key is None:
                key, times = time, []
            if window.holds(time, tick) and (key is None or time >= key):
                times.append(time)
                if _suffices(len(times), time - times[0], wanted, rate):
                    break
    return sorted(times), key is not None


def _suffices(count: int, span: Fraction, wanted: int | None, rate: Fraction | None) -> bool:
    if wanted is None:
        return False
    if rate is None:
        return count >= wanted + _MARGIN
    return count >= _MARGIN and (span - 1) * rate > wanted


def _stamped(
    file: Opened, stream: VideoStream, source: Source
) -> Generator[tuple[Fraction, VideoFrame, bool]]:
    """Decoded frames with their times on the file's clock, without those outside the edit.

    With each, whether it was deinterlaced.
    """
    window, own = file.window(stream), _has_own_stamps(file)
    following, delay = source.start or Fraction(0), None
    frames = decoded(file.path, file.container, stream, source.has_keyframes)
    for frame, woven in deinterlaced(frames):
        stamp = frame.pts if own else frame.dts
        time = following  # where the file has no stamps
        if stamp is not None:
            tick = Fraction(frame.time_base.numerator, frame.time_base.denominator)
            time = stamp * tick
            if not own:
                # A decoder gives a frame later than it took it; it always is as late.
                delay = time - following if delay is None else delay
                time -= delay
        following = time + 1 / source.rate
        if window.holds(time, source.tick):
            yield time, frame, woven
