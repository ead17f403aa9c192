"""Frames scaled and cropped as the reference trainer does it."""

import functools

import numpy as np
from jaxtyping import Float32, UInt8


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
