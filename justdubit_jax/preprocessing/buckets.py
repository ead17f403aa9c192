"""The shapes that clips are brought to: buckets, scaling and cropping, masks per latent."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float32

from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout

_MAX_FRAMES = 513  # of a bucket without a frame count, as in the reference trainer


class Bucket(NamedTuple):
    """A shape that clips are brought to; 8k + 1 frames, sizes in multiples of 32 pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def parse_buckets(text: str, layout: Layout) -> list[Bucket]:
    """Buckets of "WxHxF;WxH;...": without F, one for each frame count 1, 9, ..., 513."""
    buckets, per_latent = [], layout.frames_per_latent
    for piece in text.split(";"):
        match = re.fullmatch(r"\s*(\d+)x(\d+)(?:x(\d+))?\s*", piece, re.ASCII)
        if not match:
            raise InputError(f"buckets: {piece!r} is not WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES")
        width, height = int(match[1]), int(match[2])
        for name, size in (("width", width), ("height", height)):
            if size == 0 or size % layout.pixels_per_latent:
                raise InputError(
                    f"buckets: {piece!r}: {name} {size} is not a multiple of "
                    f"{layout.pixels_per_latent}"
                )
        counts = [int(match[3])] if match[3] else range(1, _MAX_FRAMES + 1, per_latent)
        if not layout.is_legal(counts[0]):
            raise InputError(
                f"buckets: {piece!r}: {counts[0]} frames are not a multiple of {per_latent} plus 1"
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


def pool_mask(mask: Float32[np.ndarray, "f y x"], layout: Layout) -> Float32[np.ndarray, "g h w"]:
    """A mask in 0..1 per pixel, of a bucket's shape, as one value per latent.

    The mean over a latent's pixels, then the maximum over its frames; the first frame is alone.
    """
    pixels = layout.pixels_per_latent
    mask = reduce(mask, "f (h p) (w q) -> f h w", "mean", p=pixels, q=pixels)
    rest = reduce(mask[1:], "(g k) h w -> g h w", "max", k=layout.frames_per_latent)
    return np.concatenate([mask[:1], rest])
