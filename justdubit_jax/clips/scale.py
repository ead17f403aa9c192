"""Frames scaled and cropped as the reference trainer does it."""

import functools
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8

_BAND = 16  # rows that are made at once: a large frame is never held in float32


def resize_and_crop(
    frames: UInt8[np.ndarray, "f y x 3"],
    height: int,
    width: int,
    pixel_aspect: Fraction = Fraction(1),
) -> UInt8[np.ndarray, "f h w 3"]:
    """Scale frames to cover height x width, keeping their aspect, and cut out the centre.

    `pixel_aspect` is width / height of a pixel that comes in; those that go out are square. Bicubic
    with antialiasing (a = -0.5). The rule, roundings included, is that of Lightricks/LTX-2
    packages/ltx-trainer/scripts/process_videos.py; swscale is not used because it scales RGB by
    way of YUV with halved chroma.
    """
    _, y, x, _ = frames.shape
    shown = x * pixel_aspect
    if shown / y > Fraction(width, height):
        scaled_y, scaled_x = height, max(int(shown * height / y), width)
    else:
        scaled_y, scaled_x = max(int(y * width / shown), height), width
    rows = _bicubic(y, scaled_y, (scaled_y - height) // 2, height)
    columns = _bicubic(x, scaled_x, (scaled_x - width) // 2, width)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        scaled = _weighted(columns, _weighted(rows, frame).swapaxes(0, 1)).swapaxes(0, 1)
        target[:] = np.rint(np.clip(scaled, 0, 255))
    return out


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
    rows: list[tuple[int, np.ndarray]], x: UInt8[np.ndarray, "y x 3"] | Float32[np.ndarray, "y x 3"]
) -> Float32[np.ndarray, "h x 3"]:
    """Weighted sums along the first axis; not by BLAS, whose threads would change the rounding."""
    out = np.empty((len(rows), *x.shape[1:]), np.float32)
    for first in range(0, len(rows), _BAND):
        band = rows[first : first + _BAND]
        start, (last, weights) = band[0][0], band[-1]
        part = np.ascontiguousarray(x[start : last + len(weights)], np.float32)
        for index, (low, weights) in enumerate(band, first):
            out[index] = np.einsum("k,kxc->xc", weights, part[low - start :][: len(weights)])
    return out
