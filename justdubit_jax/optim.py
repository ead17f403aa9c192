"""AdamW with torch's semantics, learning-rate groups by parameter name, and the schedule."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Factor of each group's base rate at a step; a schedule may depend on the base rate itself.
Schedule = Callable[[jax.typing.ArrayLike, jax.typing.ArrayLike], jax.Array]
Rates = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """torch.optim.AdamW's defaults; optax's weight decay would be 1e-4."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2


def linear_schedule(steps: int, start_factor: float = 1.0, end_factor: float = 0.1) -> Schedule:
    """From start_factor to end_factor of the base rate over `steps` steps (torch's LinearLR)."""

    def rate(base: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(step, steps) / steps
        return jnp.asarray(base) * (start_factor + (end_factor - start_factor) * done)

    return rate


def base_rates(
    names: Mapping[str, Sequence[str]], default: float, groups: Sequence[tuple[str, float]]
) -> dict[str, np.ndarray]:
    """Base learning rate of every block of every parameter, float32 [blocks].

    `names` are the reference's parameter names of each of our (stacked) parameters. A group is
    (regex, rate); the first that `re.search` finds in the name decides, else the default.
    """

    def rate(name: str) -> float:
        return next((r for pattern, r in groups if re.search(pattern, name)), default)

    return {path: np.array([rate(n) for n in blocks], np.float32) for path, blocks in names.items()}


class RateState(NamedTuple):
    """Updates made so far."""

    count: jax.Array


def scale_by_rates(rates: Rates, schedule: Schedule) -> optax.GradientTransformation:
    """-rate times the update, each block of a stacked parameter with its own rate."""

    def update(updates, state, params=None):
        def scale(path: str, u: jax.Array) -> jax.Array:
            rate = schedule(jnp.asarray(rates[path]), state.count)
            return -rate.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype) * u

        scaled = {path: scale(path, u) for path, u in updates.items()}
        return scaled, RateState(state.count + 1)

    return optax.GradientTransformation(lambda params: RateState(jnp.zeros((), jnp.int32)), update)


def make_optimizer(
    rates: Rates, schedule: Schedule, max_grad_norm: float, adamw: AdamW = AdamW()
) -> optax.GradientTransformation:
    """Global-norm clip (0 means none), Adam, decoupled decay, then the groups' rates.

    Decay and Adam's step are both scaled by the rate, so applying the rates last is torch's
    update p -= rate * (m / (sqrt(v) + eps) + decay * p).
    """
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm > 0 else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(adamw.b1, adamw.b2, adamw.eps),
        optax.add_decayed_weights(adamw.weight_decay),
        scale_by_rates(rates, schedule),
    )
