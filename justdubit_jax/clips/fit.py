"""Any readable clip, brought to what the model takes: its sizes, one frame rate, 8k + 1 frames."""

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.clips.read import Shape, read_clip
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout

PIXELS = 640 * 352  # to about this many a larger clip is scaled down


@dataclasses.dataclass(frozen=True)
class FittedClip:
    """Frames that the model takes, RGB, and what was done to get them, in words."""

    frames: UInt8[np.ndarray, "f y x 3"]
    fps: Fraction
    notes: list[str]
    start: Fraction | None  # of its first frame on the file's clock, for its sound

    @property
    def seconds(self) -> Fraction:
        """Exact duration, also that of the sound that belongs to it (clips.sound.read_sound)."""
        return len(self.frames) / self.fps


def fit_clip(
    path: str | Path,
    layout: Layout,
    frame_rate: Fraction | float | int | str | None = None,
    height: int | None = None,
    width: int | None = None,
    max_frames: int | None = None,
) -> FittedClip:
    """Turn upright, scale and crop, resample in time, and cut a clip to 8k + 1 frames.

    Without `frame_rate` the clip keeps its own (a variable one becomes constant), without `height`
    or `width` see `fit_size`. The clip is read no further than `max_frames`, and one frame of its
    own size is held at a time. Raises InputError for unreadable clips, shorter ones than 9 frames,
    and for arguments that the model does not take.
    """
    path, rate = Path(path), None if frame_rate is None else exact_fps(frame_rate)
    least = layout.frames_per_latent + 1
    if max_frames is not None and max_frames < least:
        raise InputError(f"max_frames {max_frames}: a clip has at least {least} frames")
    multiple = layout.pixels_per_latent
    fit_size(
        multiple, multiple, multiple, new_height=height, new_width=width
    )  # not the clip's fault
    limit = None if max_frames is None else layout.legal_frames(max_frames)
    # One more than the limit, to know whether there is more.
    stop = None if limit is None else limit + 1

    def choose(_: int, y: int, x: int) -> Shape:
        size = fit_size(y, x, multiple, new_height=height, new_width=width)
        return Shape(stop, *size)

    clip = read_clip(path, choose, stop, rate)
    if len(clip.frames) < least:
        raise InputError(
            f"{path}: {len(clip.frames)} frames at {float(clip.fps):g} fps, at least {least} are "
            "needed"
        )
    notes = clip.facts.look_notes() + clip.facts.rate_notes()
    count = layout.legal_frames(len(clip.frames))
    if len(clip.frames) == stop:
        notes.append(f"cut to its first {count} frames")
    elif count < len(clip.frames):
        notes.append(f"cut {len(clip.frames)} -> {count} frames")
    return FittedClip(clip.frames[:count], clip.fps, notes, clip.start)


def fit_image(path: str | Path, height: int, width: int) -> UInt8[np.ndarray, "1 y x 3"]:
    """An image (or a clip's first frame) turned upright, scaled and cropped to a clip's size."""
    clip = read_clip(path, lambda *_: Shape(1, height, width), 1)
    return clip.frames


def fit_size(
    height: int,
    width: int,
    multiple: int,
    *,
    new_height: int | None = None,
    new_width: int | None = None,
    pixels: int = PIXELS,
) -> tuple[int, int]:
    """The size (height, width) to which a picture is brought: the nearest multiples.

    Of a new height and width the one that is missing follows from the aspect. Where both are, the
    picture keeps its size, or is scaled down to about `pixels`. Raises InputError for a new size
    off the grid.
    """
    for name, size in (("height", new_height), ("width", new_width)):
        if size is not None and (size <= 0 or size % multiple):
            below = size // multiple * multiple
            near = [n for n in (below, below + multiple) if n > 0] or [multiple]
            raise InputError(
                f"{name} {size} is not a multiple of {multiple}; "
                f"nearest: {' and '.join(map(str, near))}"
            )
    if new_height is not None:
        scale = new_height / height
    elif new_width is not None:
        scale = new_width / width
    else:
        scale = min(1, math.sqrt(pixels / (height * width)))

    def nearest(size: float) -> int:
        return max(round(size / multiple), 1) * multiple

    return new_height or nearest(height * scale), new_width or nearest(width * scale)
