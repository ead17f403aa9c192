"""Clips on disk: read and write video and sound as numpy arrays.

A person's file that cannot be used raises InputError, `PATH: reason`. Pictures are taken as they
are stored: neither rotation metadata (which `iterate` tells) nor non-square pixels are applied, as
in the reference trainer.
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio import AudioFrame, AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video import VideoStream
from jaxtyping import Float32, UInt8

from justdubit_jax.clips.formats import EXACT
from justdubit_jax.clips.resample import resample
from justdubit_jax.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Clip:
    """The frames of a video, RGB, at a constant rate of `fps`."""

    frames: UInt8[np.ndarray, "f y x 3"]
    fps: Fraction

    @property
    def seconds(self) -> Fraction:
        """Exact duration."""
        return len(self.frames) / self.fps


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
    """Read a video's or an image's header, decoding nothing."""
    path = Path(path)
    with _open(path) as container:
        stream = _video_stream(path, container)
        fps, seconds = _fps(path, stream), None
        frames = 1 if path.suffix.lower() in IMAGES else None
        if frames is None and (end := _declared_end(stream)) is not None:
            seconds = end - _start(stream)
            frames = round(seconds * fps)
        has_audio = bool(container.streams.audio)
        return Probe(frames, fps, stream.height, stream.width, has_audio, seconds)


class Picture(NamedTuple):
    """A frame of a video, RGB, as it is stored."""

    time: Fraction  # seconds after the first frame
    pixels: UInt8[np.ndarray, "y x 3"]
    rotation: int  # degrees by which it is to be turned counterclockwise, a multiple of 90


def iterate_pictures(path: str | Path) -> Generator[Picture]:
    """The frames of a video of constant or variable rate, in the order of presentation.

    One frame at a time is decoded. Raises InputError for files that are unreadable, damaged or
    cut off, when it comes to that place.
    """
    path = Path(path)
    with _open(path) as container:
        stream = _video_stream(path, container)
        yield from _pictures(path, container, stream, _fps(path, stream))


def read_video(path: str | Path, max_frames: int | None = None) -> Clip:
    """The first `max_frames` frames (default: all), in the order of presentation.

    A .png or .jpg is a clip of one frame at 1 fps. Raises InputError for files that are
    unreadable, damaged or cut off, and where frames are missing for their rate.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGES:
        max_frames = 1
    with _open(path) as container:
        stream = _video_stream(path, container)
        fps = _fps(path, stream)
        pictures = list(itertools.islice(_pictures(path, container, stream, fps), max_frames))
    needed = pictures[-1].time * fps + 1
    if len(pictures) != max_frames and len(pictures) < needed - 1.5:
        raise InputError(
            f"{path}: {len(pictures)} frames, but {round(needed)} for its duration at "
            f"{float(fps):g} fps: damaged, or of variable frame rate"
        )
    return Clip(np.stack([picture.pixels for picture in pictures]), fps)


def read_audio(
    path: str | Path, sample_rate: int, seconds: Fraction | float | int
) -> Float32[np.ndarray, "2 n"]:
    """The sound of a clip's first `seconds`, stereo, in -1..1.

    It is cut at its own rate, to int(seconds * rate) samples, before it is brought to
    `sample_rate`, as in the reference. Sample 0 belongs to the first frame of the video: sound
    that starts earlier is cut, later is preceded by silence; so is a gap. Mono is doubled, more
    channels are mixed down; the end is padded with silence. Raises InputError for files without
    sound or damaged.
    """
    path = Path(path)
    with _open(path) as container:
        if not container.streams.audio:
            raise InputError(f"{path}: no audio stream")
        stream = container.streams.audio[0]
        video = _video_streams(container)
        origin = _start(video[0] if video else stream)
        sound, rate, end = _placed_samples(path, container, stream, origin, seconds)
        declared = _declared_end(stream) if video else None
        if declared is not None and end < min(declared, origin + float(seconds)) - 0.1:
            raise InputError(f"{path}: its audio ends at {end:.2f} s instead of {declared:.2f} s")
    return resample(sound, rate, sample_rate)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[InputContainer]:
    # A file object and not a name: FFmpeg reads patterns (%d) and protocols (a:b) into names.
    try:
        with path.open("rb") as file:
            if not file.peek(1):
                raise InputError(f"{path}: empty file")
            with av.open(file, "r") as container:
                yield container
    except FFmpegError as error:
        raise InputError(f"{path}: cannot be decoded: {error.strerror}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _video_streams(container: InputContainer) -> list[VideoStream]:
    streams = container.streams.video
    return [s for s in streams if s.width and not s.disposition & Disposition.attached_pic]


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if streams := _video_streams(container):
        return streams[0]
    raise InputError(f"{path}: no video stream")


def _fps(path: Path, stream: VideoStream) -> Fraction:
    if path.suffix.lower() in IMAGES:
        return Fraction(1)
    if rate := stream.average_rate or stream.guessed_rate or stream.base_rate:
        return Fraction(rate.numerator, rate.denominator)
    raise InputError(f"{path}: no frame rate")


def _start(stream: VideoStream | AudioStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _declared_end(stream: VideoStream | AudioStream) -> float | None:
    """Time at which a stream ends according to its header, in seconds on the file's clock."""
    if stream.duration:
        return _start(stream) + float(stream.duration * (stream.time_base or 0))
    # Matroska has no durations per stream; its usual writers leave the end in a tag.
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return None


def _pictures(
    path: Path, container: InputContainer, stream: VideoStream, fps: Fraction
) -> Iterator[Picture]:
    origin, time, count, shape, longest = None, Fraction(0), 0, None, 1 / fps
    for count, frame in enumerate(_decode(path, container, stream), 1):
        previous, time = time, (count - 1) / fps  # where the file has no stamps
        if frame.pts is not None:
            tick = Fraction(frame.time_base.numerator, frame.time_base.denominator)
            origin = frame.pts * tick if origin is None else origin
            time = _on_grid(frame.pts * tick - origin, fps, tick)
        longest = max(longest, time - previous)
        pixels = frame.to_ndarray(format="rgb24", interpolation=EXACT)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise InputError(f"{path}: the size of the picture changes at frame {count}")
        yield Picture(time, pixels, round(frame.rotation / 90) * 90)
    if not count:
        raise InputError(f"{path}: no frames")
    # A rate may vary, but no more than a second is taken for that.
    if longest > 1 and count < time * fps - 0.5:
        raise InputError(f"{path}: damaged: no frames for {float(longest):.1f} s")
    end, reached = _declared_end(stream), (origin or 0) + time + 1 / fps
    # One frame of tolerance and a half: some muxers count one more than they write.
    if origin is not None and end is not None and reached < end - 1.5 * longest:
        raise InputError(
            f"{path}: its video ends at {float(reached):.2f} s instead of {end:.2f} s: "
            "cut off or damaged"
        )


def _on_grid(time: Fraction, fps: Fraction, resolution: Fraction) -> Fraction:
    """The time of the frame at a constant rate of which `time` may be the rounded stamp.

    Matroska rounds to milliseconds, and comparisons of such times would come out at random.
    """
    exact = round(time * fps) / fps
    return exact if abs(exact - time) <= resolution else time


def _decode(path: Path, container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames of a video or audio stream; raises InputError at the first damaged one."""
    stream.codec_context.thread_type = "AUTO"
    for packet in container.demux(stream):
        frames = packet.decode()
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise InputError(
                f"{path}: damaged at {float((packet.pts or 0) * packet.time_base):.2f} s"
            )
        yield from frames


def _placed_samples(
    path: Path,
    container: InputContainer,
    stream: AudioStream,
    origin: float,
    seconds: Fraction | float | int,
) -> tuple[Float32[np.ndarray, "2 n"], int, float]:
    """`seconds` of decoded samples from `origin` on, their rate, and the time where they end."""
    line, rate, position = None, 0, None
    for frame in _decode(path, container, stream):
        if line is None:
            rate = frame.sample_rate
            line = np.zeros((2, int(seconds * rate)), np.float32)
        if frame.sample_rate != rate:
            raise InputError(f"{path}: the rate of its audio changes at {frame.time} s")
        stamped = position if frame.time is None else round((frame.time - origin) * rate)
        # Stamps may be rounded to milliseconds: only much more than that is a gap.
        if position is None or abs(stamped - position) > 0.05 * rate:
            position = stamped or 0
        samples = _stereo(frame)
        low = min(max(position, 0), line.shape[1])
        high = min(max(position + samples.shape[1], 0), line.shape[1])
        line[:, low:high] = samples[:, low - position : high - position]
        position += samples.shape[1]
        if position >= line.shape[1]:
            break
    if line is None or position is None:
        raise InputError(f"{path}: its audio stream is empty")
    return line, rate, origin + position / rate


def _stereo(frame: AudioFrame) -> Float32[np.ndarray, "2 n"]:
    # FFmpeg turns mono into stereo at -3 dB, so mono is doubled here.
    mono = frame.layout.nb_channels == 1
    converter = av.AudioResampler(format="fltp", layout="mono" if mono else "stereo")
    parts = [*converter.resample(frame), *converter.resample(None)]
    samples = np.concatenate([part.to_ndarray() for part in parts], axis=1)
    return np.broadcast_to(samples, (2, samples.shape[1]))
