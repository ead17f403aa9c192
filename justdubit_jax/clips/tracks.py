"""Which of a file's tracks is the clip, and which its sound."""

from pathlib import Path
from typing import Any

from av.audio import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoStream

from justdubit_jax.errors import InputError

# Pictures that belong to a clip and are not it: cover art, thumbnails, depth.
_BESIDE = (
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
)
_PICTURES = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")


def video_track(path: Path, container: InputContainer) -> VideoStream:
    """The track with the default mark, of several or without marks the largest picture.

    Cover art is left out. Raises InputError where there is none that can be decoded.
    """
    streams = list(container.streams.video)
    tracks = [s for s in streams if not s.disposition & _BESIDE] or streams
    tracks = [s for s in tracks if not s.disposition & Disposition.attached_pic]
    tracks = [s for s in tracks if not _is_picture(s)] or tracks
    if not tracks:
        raise InputError(f"{path}: no video stream")
    chosen = max(tracks, key=lambda s: (_is_default(s), _can_decode(s), _area(s), -s.index))
    if not _can_decode(chosen):
        raise InputError(f"{path}: its video is in a codec that has no decoder here")
    if not _area(chosen):
        raise InputError(f"{path}: no video stream")
    return chosen


def audio_track(path: Path, container: InputContainer) -> AudioStream:
    """The track with the default mark, else the first.

    Raises InputError where there is none, or it cannot be decoded.
    """
    tracks = list(container.streams.audio)
    if not tracks:
        raise InputError(f"{path}: no audio stream")
    chosen = max(
        tracks, key=lambda s: (_is_default(s), _is_default(s) and _can_decode(s), -s.index)
    )
    if not _can_decode(chosen):
        raise InputError(f"{path}: its sound is in a codec that has no decoder here")
    return chosen


def track_name(container: InputContainer, stream: VideoStream | AudioStream) -> str:
    """Which of how many tracks of its kind, and its codec."""
    kind = container.streams.video if stream.type == "video" else container.streams.audio
    number = [s.index for s in kind].index(stream.index) + 1
    return f"{stream.type} {number} of {len(kind)}, {stream.codec_context.name}"


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.default)


def _can_decode(stream: Any) -> bool:
    return stream.codec_context is not None


def _area(stream: Any) -> int:
    return stream.width * stream.height if _can_decode(stream) else 0


def _is_picture(stream: Any) -> bool:
    """Whether it has a still picture's codec: beside a track of another it is cover art."""
    return _can_decode(stream) and stream.codec_context.name in _PICTURES
