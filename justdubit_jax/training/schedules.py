"""Learning-rate schedules: torch's curves, as Lightricks' ltx-trainer builds them for a run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from justdubit_jax.errors import InputError

KINDS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "step")

# Least and greatest value of every parameter. Counts are whole numbers of steps, int32 on devices.
_RANGES = {
    "start_factor": (0, 1),
    "end_factor": (0, 1),
    "eta_min": (0, math.inf),
    "power": (0, math.inf),
    "gamma": (0, math.inf),
}
_COUNTS = ("T_0", "T_mult", "step_size")
_LARGEST_COUNT = 2**31 - 1


def defaults(kind: str, steps: int) -> dict[str, float]:
    """The parameters of a kind by torch's names (ltx_trainer/trainer.py, _create_scheduler)."""
    return {
        "constant": {},
        "linear": {"start_factor": 1.0, "end_factor": 0.1},
        "cosine": {"eta_min": 0.0},
        "cosine_with_restarts": {"T_0": max(1, steps // 4), "T_mult": 1, "eta_min": 5e-5},
        "polynomial": {"power": 1.0},
        "step": {"step_size": max(1, steps // 2), "gamma": 0.1},
    }[kind]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Rate of an update: a function of the base rate and the step, counted from 0.

    It is no factor of the base rate, since torch's eta_min is a rate, the same for every group.
    """

    kind: str  # one of KINDS
    steps: int  # of the run; LinearLR's total_iters, CosineAnnealingLR's T_max, …
    params: Mapping[str, float] = dataclasses.field(default_factory=dict)  # over the defaults
    warmup_steps: int = 0  # the rate grows in as many equal parts to the curve's

    def __post_init__(self):
        _check(self.kind, self.params, defaults(self.kind, self.steps))

    def __call__(self, base: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> jax.Array:
        params = {**defaults(self.kind, self.steps), **self.params}
        rate = _CURVES[self.kind](jnp.asarray(base), jnp.asarray(step), self.steps, **params)
        if self.warmup_steps:
            rate = rate * jnp.minimum(1, (step + 1) / self.warmup_steps)
        return rate


def _check(kind: str, params: Mapping[str, float], known: Mapping[str, float]) -> None:
    for name, value in params.items():
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise InputError(f"unknown {name!r}; {kind} {takes}")
        if name in _COUNTS:
            if not (1 <= value <= _LARGEST_COUNT and float(value).is_integer()):
                raise InputError(f"{name} is {value}, expected a whole number above 0")
            continue
        low, high = _RANGES[name]
        if not (low <= value <= high and math.isfinite(value)):
            wanted = f"{low} to {high}" if math.isfinite(high) else f"at least {low}"
            raise InputError(f"{name} is {value}, expected {wanted}")


def _constant(base: jax.Array, step: jax.Array, steps: int) -> jax.Array:
    return jnp.broadcast_to(base, jnp.broadcast_shapes(base.shape, step.shape))


def _linear(
    base: jax.Array, step: jax.Array, steps: int, start_factor: float, end_factor: float
) -> jax.Array:
    done = jnp.minimum(step, steps)
    return base * (start_factor * (steps - done) / steps + end_factor * done / steps)


def _cosine(base: jax.Array, step: jax.Array, length: Any, eta_min: float) -> jax.Array:
    # (1 + cos(pi t / T)) / 2 as sin^2 of what is left: near the end 1 + cos cancels in float32.
    angle = jnp.pi / 2 * (length - step) / length
    return base * jnp.sin(angle) ** 2 + eta_min * jnp.cos(angle) ** 2


def _cosine_with_restarts(
    base: jax.Array, step: jax.Array, steps: int, T_0: float, T_mult: float, eta_min: float
) -> jax.Array:
    if T_mult == 1:
        return _cosine(base, step % int(T_0), int(T_0), eta_min)
    starts, lengths = [0], [int(T_0)]
    while starts[-1] + lengths[-1] <= steps:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * int(T_mult))
    cycle = jnp.searchsorted(jnp.array(starts), step, side="right") - 1
    # The last length may be beyond int32.
    return _cosine(
        base, step - jnp.array(starts)[cycle], jnp.array(lengths, jnp.float32)[cycle], eta_min
    )


def _polynomial(base: jax.Array, step: jax.Array, steps: int, power: float) -> jax.Array:
    return base * ((steps - jnp.minimum(step, steps)) / steps) ** power


def _step(
    base: jax.Array, step: jax.Array, steps: int, step_size: float, gamma: float
) -> jax.Array:
    return base * gamma ** (step // int(step_size))


_CURVES = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "step": _step,
}
