"""Any readable clip, brought to what the model takes: its sizes, one frame rate, 8k + 1 frames."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.clips.read import Picture, iterate_pictures, probe
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout

PIXELS = 640 * 352  # to about this many a larger clip is scaled down
_MAX_FPS = 240  # above it, a header's rate is a clock's: screen and browser recordings


@dataclasses.dataclass(frozen=True)
class FittedClip:
    """Frames that the model takes, RGB, and what was done to get them, in words."""

    frames: UInt8[np.ndarray, "f y x 3"]
    fps: Fraction
    notes: list[str]

    @property
    def seconds(self) -> Fraction:
        """Exact duration, also that of the sound that belongs to it (media.read_audio)."""
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
    fps = probe(path).fps
    rate = _rate(path, fps, frame_rate)
    least = layout.frames_per_latent + 1
    if max_frames is not None and max_frames < least:
        raise InputError(f"max_frames {max_frames}: a clip has at least {least} frames")
    limit = None if max_frames is None else layout.legal_frames(max_frames)
    times, frames, notes = [], [], []

    def upright(pictures: Iterable[Picture]) -> Iterator[tuple[Fraction, np.ndarray]]:
        for time, pixels, rotation in pictures:
            times.append(time)
            if rotation and len(times) == 1:
                notes.append(f"turned by {rotation % 360} degrees counterclockwise")
            yield time, np.rot90(pixels, rotation // 90)

    with contextlib.closing(iterate_pictures(path)) as pictures:
        # One more than the limit, to know whether there is more.
        stop = None if limit is None else limit + 1
        size = None
        for pixels in itertools.islice(_at_rate(upright(pictures), rate, fps), stop):
            if size is None:
                y, x, _ = pixels.shape
                size = fit_size(y, x, layout.pixels_per_latent, new_height=height, new_width=width)
                notes += _size_notes(y, x, *size)
            frames.append(resize_and_crop(pixels[None], *size)[0])
    if len(frames) < least:
        raise InputError(
            f"{path}: {len(frames)} frames at {float(rate):g} fps, at least {least} are needed"
        )
    if any(abs(time * fps - index) > 0.5 for index, time in enumerate(times)):
        notes.append(f"resampled from a variable frame rate to {float(rate):g} fps")
    elif rate != fps:
        notes.append(f"resampled {float(fps):g} -> {float(rate):g} fps")
    count = layout.legal_frames(len(frames))
    if len(frames) == stop:
        notes.append(f"cut to its first {count} frames")
    elif count < len(frames):
        notes.append(f"cut {len(frames)} -> {count} frames")
    return FittedClip(np.stack(frames[:count]), rate, notes)


def fit_image(path: str | Path, height: int, width: int) -> UInt8[np.ndarray, "1 y x 3"]:
    """An image (or a clip's first frame) turned upright, scaled and cropped to a clip's size."""
    with contextlib.closing(iterate_pictures(path)) as pictures:
        picture = next(pictures)
    return resize_and_crop(np.rot90(picture.pixels, picture.rotation // 90)[None], height, width)


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


def _rate(
    path: str | Path, fps: Fraction, frame_rate: Fraction | float | int | str | None
) -> Fraction:
    if frame_rate is not None:
        return exact_fps(frame_rate)
    if fps > _MAX_FPS:
        raise InputError(
            f"{path}: its header says {float(fps):g} frames per second; give a frame rate"
        )
    return fps


def _at_rate(
    frames: Iterable[tuple[Fraction, UInt8[np.ndarray, "y x 3"]]], rate: Fraction, fps: Fraction
) -> Iterator[UInt8[np.ndarray, "y x 3"]]:
    """Of frames with their times the nearest to each k / rate; of two as near, the earlier.

    The last frame lasts 1 / fps.
    """
    index, last, shown = 0, Fraction(0), None
    for time, pixels in frames:
        while shown is not None and index / rate <= (last + time) / 2:
            yield shown
            index += 1
        last, shown = time, pixels
    while shown is not None and index < round((last + 1 / fps) * rate):
        yield shown
        index += 1


def _size_notes(y: int, x: int, height: int, width: int) -> list[str]:
    """What scaling y, x to cover height, width and cropping does to a picture."""
    kept = (x / y) / (width / height)
    side, lost = ("height", 1 - kept) if kept < 1 else ("width", 1 - 1 / kept)
    resized, cropped = max(height / y, width / x) != 1, lost > 0.0005
    if not (resized or cropped):
        return []
    verb = " and ".join(["resized"] * resized + ["cropped"] * cropped)
    loss = f", losing {100 * lost:.1f} % of its {side}" if cropped else ""
    return [f"{verb} {x}x{y} -> {width}x{height}{loss}"]
