"""A row of a data set as arrays in the shape of its bucket."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from justdubit_jax.clips.read import read_audio, read_video
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.data.rows import Row
from justdubit_jax.errors import InputError
from justdubit_jax.latents.shapes import Frames, Sound
from justdubit_jax.models.tokens import Layout
from justdubit_jax.preprocessing.buckets import Bucket, choose_bucket, pool_mask


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A row's media in the shape of its bucket."""

    row: Row
    bucket: Bucket
    fps: Fraction
    frames: Frames
    reference_frames: Frames | None
    mask: np.ndarray | None
    sound: Sound | None
    reference_sound: Sound | None


def load_row(row: Row, shapes: Sequence[Bucket], sample_rate: int, layout: Layout) -> Loaded:
    """Read a row's files into its bucket; sample_rate 0 leaves the sound out.

    Raises InputError naming the file: unreadable, too short, another frame rate, no sound.
    """
    longest = max(bucket.frames for bucket in shapes)
    clip = read_video(row.clip, longest)
    count, height, width, _ = clip.frames.shape
    try:
        bucket = choose_bucket(count, height, width, shapes)
    except InputError as error:
        raise InputError(f"{row.clip}: {error}") from None

    def companion(path: Path) -> Frames:
        other = read_video(path, bucket.frames)
        if other.fps != clip.fps:
            raise InputError(
                f"{path}: {float(other.fps):g} frames per second, {row.clip} has "
                f"{float(clip.fps):g}; both must be the same"
            )
        if len(other.frames) < bucket.frames:
            raise InputError(
                f"{path}: {len(other.frames)} frames, {row.clip} needs {bucket.frames} (its bucket)"
            )
        return resize_and_crop(other.frames, bucket.height, bucket.width)

    def sound(path: Path) -> Sound | None:
        seconds = Fraction(bucket.frames) / clip.fps
        return read_audio(path, sample_rate, seconds) if sample_rate else None

    mask = companion(row.mask) if row.mask else None
    return Loaded(
        row=row,
        bucket=bucket,
        fps=clip.fps,
        frames=resize_and_crop(clip.frames[: bucket.frames], bucket.height, bucket.width),
        reference_frames=companion(row.reference) if row.reference else None,
        mask=None if mask is None else pool_mask(mask.mean(-1, dtype=np.float32) / 255, layout),
        sound=sound(row.clip),
        reference_sound=sound(row.reference) if row.reference else None,
    )
