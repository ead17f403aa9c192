"""A clip's file: opened so that its stamps are its own, and decoded."""

import contextlib
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.audio import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video import VideoStream

from justdubit_jax.clips.edits import Window, simple_edits
from justdubit_jax.errors import InputError

_THREADS = min(4, os.cpu_count() or 1)  # each holds decoded frames of the clip's own size


class Opened(NamedTuple):
    """An open file, and by track id which part of its tracks is shown."""

    path: Path
    container: InputContainer
    windows: dict[int, Window]

    def window(self, stream: VideoStream | AudioStream) -> Window:
        return self.windows.get(stream.id, Window(Fraction(-(2**31)), None))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file; what FFmpeg and the system say inside the context becomes InputError."""
    # A file object and not a name: FFmpeg reads patterns (%d) and protocols (a:b) into names.
    try:
        with path.open("rb") as file:
            if not file.peek(1):
                raise InputError(f"{path}: empty file")
            windows = simple_edits(file)
            options = {"advanced_editlist": "0"} if windows else {}
            with av.open(file, "r", options=options) as container:
                yield Opened(path, container, windows or {})
    except FFmpegError as error:
        raise InputError(f"{path}: cannot be decoded: {error.strerror}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def decoded(
    path: Path, container: InputContainer, stream: Any, from_keyframe: bool = False
) -> Iterator[Any]:
    """The frames of a video or audio stream; raises InputError at the first damaged one.

    The cut-off packets with which a stream may begin are left out, and with `from_keyframe` what
    comes before one, of which decoders may make something nevertheless.
    """
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = _THREADS
    begun, waiting = False, from_keyframe
    for packet in container.demux(stream):
        if not begun and packet.is_corrupt:  # the rest of one that was cut
            waiting = from_keyframe
        elif not waiting or packet.is_keyframe:
            waiting, frames = False, packet.decode()
            if not begun and from_keyframe:  # frames that refer to what is before the keyframe
                frames = [f for f in frames if f.key_frame or not f.is_corrupt]
            if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
                raise InputError(
                    f"{path}: damaged at {seconds(packet.pts, packet.time_base):.2f} s"
                )
            begun |= bool(frames)
            yield from frames


def seconds(stamp: int | None, time_base: Any) -> float:
    return float((stamp or 0) * (time_base or 0))


def declared_end(
    stream: VideoStream | AudioStream,
    window: Window = Window(),  # noqa: B008 (immutable)
) -> float | None:
    """Time at which a stream ends according to its header, in seconds on the file's clock."""
    if stream.duration:
        end = seconds((stream.start_time or 0) + stream.duration, stream.time_base)
        return end if window.end is None else min(end, float(window.end))
    # Matroska has no durations per stream; its usual writers leave the end in a tag.
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return None
