"""Masks on disk: white where the face is, in a clip, a still picture or an alpha channel."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from justdubit_jax.clips.facts import Finding
from justdubit_jax.clips.frames import scan
from justdubit_jax.clips.read import Clip, Shape, read_clip

_WHITE = 0.5  # of full scale
_FULL = 0.99  # share of the picture
_JUMP = 0.5  # change of the white area from one frame to the next, of the larger one


def read_mask(
    path: Path, frames: int, height: int, width: int, rate: Fraction, strict: bool = False
) -> Clip:
    """A mask of a clip's shape and rate; a file of one picture stands for all frames.

    Where its alpha channel is not opaque, that is the mask. Raises InputError as `read_clip` does.
    """
    still = scan(path, 2).frames == 1
    shape = Shape(1 if still else frames, height, width)
    clip = read_clip(path, lambda *_: shape, shape.frames, None if still else rate, strict, True)
    if not still:
        return clip
    repeated = np.repeat(clip.frames, frames, 0)
    return Clip(repeated, rate, clip.start, clip.facts)


def mask_findings(path: Path, mask: Float32[np.ndarray, "f y x"]) -> list[Finding]:
    """What is odd about a mask in 0..1: nothing white, all white, or an area that jumps."""
    area = (mask > _WHITE).mean((1, 2))
    if not area.any():
        return [Finding(path, "mask-empty", "nothing in the mask is white")]
    if area.min() > _FULL:
        return [Finding(path, "mask-full", "all of the mask is white")]
    larger = np.maximum(area[1:], area[:-1])
    jumps = np.flatnonzero(np.abs(np.diff(area)) > _JUMP * larger)
    if len(jumps) < 2:
        return []
    text = (
        f"the mask flickers: its area changes by more than half {len(jumps)} times from one frame "
        f"to the next, first at frame {jumps[0] + 2}"
    )
    return [Finding(path, "mask-flickers", text)]
