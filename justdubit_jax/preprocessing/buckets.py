"""The shapes that clips are brought to: buckets, scaling and cropping, masks per latent."""

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float32, UInt8

from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import FRAMES_PER_LATENT, PIXELS_PER_LATENT

_MAX_FRAMES = 513  # of a bucket without a frame count, as in the reference trainer


def resize_and_crop(
    frames: UInt8[np.ndarray, "f y x 3"], height: int, width: int
) -> UInt8[np.ndarray, "f h w 3"]:
    """Scale frames to cover height x width, keeping their aspect, and cut out the centre.

    Bicubic with antialiasing (a = -0.5). The rule, roundings included, is that of Lightricks/LTX-2
    packages/ltx-trainer/scripts/process_videos.py; swscale is not used because it scales RGB by
    way of YUV with halved chroma.
    """
    _, y, x, _ = frames.shape
    if x / y > width / height:
        scaled_y, scaled_x = height, int(x * height / y)
    else:
        scaled_y, scaled_x = int(y * width / x), width
    rows = _bicubic(y, scaled_y, (scaled_y - height) // 2, height)
    columns = _bicubic(x, scaled_x, (scaled_x - width) // 2, width)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        scaled = _weighted(rows, frame.astype(np.float32))
        scaled = _weighted(columns, np.ascontiguousarray(scaled.swapaxes(0, 1))).swapaxes(0, 1)
        target[:] = np.rint(np.clip(scaled, 0, 255))
    return out


class Bucket(NamedTuple):
    """A shape that clips are brought to; 8k + 1 frames, sizes in multiples of 32 pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def parse_buckets(text: str) -> list[Bucket]:
    """Buckets of "WxHxF;WxH;...": without F, one for each frame count 1, 9, ..., 513."""
    buckets = []
    for piece in text.split(";"):
        match = re.fullmatch(r"\s*(\d+)x(\d+)(?:x(\d+))?\s*", piece, re.ASCII)
        if not match:
            raise InputError(f"buckets: {piece!r} is not WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES")
        width, height = int(match[1]), int(match[2])
        for name, size in (("width", width), ("height", height)):
            if size == 0 or size % PIXELS_PER_LATENT:
                raise InputError(
                    f"buckets: {piece!r}: {name} {size} is not a multiple of {PIXELS_PER_LATENT}"
                )
        counts = [int(match[3])] if match[3] else range(1, _MAX_FRAMES + 1, FRAMES_PER_LATENT)
        if counts[0] % FRAMES_PER_LATENT != 1:
            raise InputError(
                f"buckets: {piece!r}: {counts[0]} frames are not a multiple of "
                f"{FRAMES_PER_LATENT} plus 1"
            )
        buckets += [Bucket(count, height, width) for count in counts]
    return buckets


def choose_bucket(frames: int, height: int, width: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of a clip: nearest aspect, then most frames, then largest, of those it can fill.

    The order is that of Lightricks/LTX-2 packages/ltx-trainer/scripts/process_videos.py. Raises
    InputError where the clip is shorter than every bucket.
    """
    fitting = [bucket for bucket in buckets if bucket.frames <= frames]
    if not fitting:
        needed = min(bucket.frames for bucket in buckets)
        raise InputError(f"{frames} frames, but the shortest bucket needs {needed}")

    def distance(bucket: Bucket) -> tuple[float, int, int]:
        aspect = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
        return aspect, -bucket.frames, -bucket.height * bucket.width

    return min(fitting, key=distance)


def pool_mask(mask: Float32[np.ndarray, "f y x"]) -> Float32[np.ndarray, "g h w"]:
    """A mask in 0..1 per pixel, of a bucket's shape, as one value per latent.

    The mean over a latent's pixels, then the maximum over its frames; the first frame is alone.
    """
    mask = reduce(mask, "f (h p) (w q) -> f h w", "mean", p=PIXELS_PER_LATENT, q=PIXELS_PER_LATENT)
    rest = reduce(mask[1:], "(g k) h w -> g h w", "max", k=FRAMES_PER_LATENT)
    return np.concatenate([mask[:1], rest])


@functools.lru_cache(maxsize=8)
def _bicubic(size: int, scaled: int, first: int, count: int) -> list[tuple[int, np.ndarray]]:
    """First source index and weights of `count` positions out of `scaled`, from `first` on."""
    scale = size / scaled
    radius = 2 * max(scale, 1.0)
    rows = []
    for centre in scale * (np.arange(first, first + count) + 0.5):
        low, high = max(int(centre - radius + 0.5), 0), min(int(centre + radius + 0.5), size)
        t = np.abs(np.arange(low, high) + 0.5 - centre) / max(scale, 1.0)
        near = (1.5 * t - 2.5) * t * t + 1
        far = ((-0.5 * t + 2.5) * t - 4) * t + 2
        weights = np.where(t < 1, near, np.where(t < 2, far, 0))
        rows.append((low, (weights / weights.sum()).astype(np.float32)))
    return rows


def _weighted(
    rows: list[tuple[int, np.ndarray]], x: Float32[np.ndarray, "y x 3"]
) -> Float32[np.ndarray, "h x 3"]:
    """Weighted sums along the first axis; not by BLAS, whose threads would change the rounding."""
    out = np.empty((len(rows), *x.shape[1:]), np.float32)
    for index, (low, weights) in enumerate(rows):
        out[index] = np.einsum("k,kxc->xc", weights, x[low : low + len(weights)])
    return out
