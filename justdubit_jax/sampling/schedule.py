"""LTX-2's sigma schedule, and steps along it.

Source of the formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/components/{schedulers,
diffusion_steps}.py.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError

DEFAULT_TOKENS = 4096  # the schedule's length where none is given
TERMINAL = 0.1  # the last sigma before 0


def sigmas(steps: int, tokens: int = DEFAULT_TOKENS) -> Float[np.ndarray, " n"]:
    """Noise levels from 1 to 0; more latent video tokens (f * y * x) keep the noise for longer.

    Float32 in the reference's order of operations, since little is left of 1 - level where tokens
    are many. Raises InputError if there is no step.
    """
    if steps < 1:
        raise InputError(f"sampling steps: got {steps}, expected at least 1")
    if steps == 1:
        return np.array([1, 0], np.float32)
    one, slope = np.float32(1), (2.05 - 0.95) / (4096 - 1024)
    shift = min(slope * tokens + (0.95 - slope * 1024), 80)  # float32 ends at exp(88)
    boost = np.float32(np.exp(shift))
    index, step = np.arange(steps, dtype=np.float32), one / np.float32(steps)
    line = np.where(index < (steps + 1) // 2, one - step * index, step * (steps - index))
    levels = one / (boost + (one / line - one)) * boost
    room = (one - levels[-1]) / np.float32(1 - TERMINAL)
    if room > 0:  # 0 where all levels round to 1
        levels = one - (one - levels) / room
    return np.append(levels, np.float32(0))


def to_denoised(
    x: Float[Array, "*b c"], velocity: Float[Array, "*b c"], sigma: Float[Array, "..."] | float
) -> Float[Array, "*b c"]:
    """The clean tokens that a velocity (noise - clean) at noise level sigma points to."""
    return x - velocity * sigma


def to_velocity(
    x: Float[Array, "*b c"], denoised: Float[Array, "*b c"], sigma: Float[Array, "..."] | float
) -> Float[Array, "*b c"]:
    """The inverse of `to_denoised`; sigma must not be 0."""
    return (x - denoised) / sigma


def euler_step(
    x: Float[Array, "*b c"], denoised: Float[Array, "*b c"], sigma: Any, next_sigma: Any
) -> Float[Array, "*b c"]:
    """From one noise level to the next, along the straight line to the denoised tokens."""
    return x + to_velocity(x, denoised, sigma) * (next_sigma - sigma)
