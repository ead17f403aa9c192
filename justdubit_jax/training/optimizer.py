"""The optimizer: AdamW with torch's semantics and learning-rate groups by parameter name."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from justdubit_jax.training.adam8bit import scale_by_adam8bit
from justdubit_jax.training.schedules import Schedule

KINDS = ("adamw", "adamw8bit")

Rates = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a run, checked."""

    kind: str  # one of KINDS; adamw8bit has moments of a byte each
    first_moment_dtype: str  # of adamw
    learning_rate: float
    groups: tuple[tuple[str, float], ...]  # (regex, rate) of parameters, see base_rates
    schedule: Schedule
    max_grad_norm: float  # global norm of the gradients; 0 for no clipping


@dataclasses.dataclass(frozen=True)
class AdamW:
    """torch.optim.AdamW's defaults; optax's weight decay would be 1e-4."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2


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


def curves(config: OptimizerConfig) -> dict[str, Callable[[int], np.ndarray]]:
    """For the log: every group's rate at a step from 0.

    Computed at once: asked for step by step, it would wait on the device behind the training.
    """
    groups = {"default": config.learning_rate, **dict(config.groups)}
    steps = np.arange(config.schedule.steps)
    return {
        name: np.asarray(config.schedule(np.float32(rate), steps)).__getitem__
        for name, rate in groups.items()
    }


def scale_by_rates(rates: Rates, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """-rate times the update, each block of a stacked parameter with its own rate.

    `update` takes the training step, since the count of updates would fall behind it when one is
    left out.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        step = extra["step"]

        def scale(path: str, u: jax.Array) -> jax.Array:
            rate = schedule(rates[path], step)
            return -rate.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype) * u

        return {path: scale(path, u) for path, u in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: OptimizerConfig, names: Mapping[str, Sequence[str]], adamw: AdamW = AdamW()
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clip, Adam, decoupled decay, then the groups' rates; `update` wants `step`.

    Decay and Adam's step are both scaled by the rate, so applying the rates last is torch's
    update p -= rate * (m / (sqrt(v) + eps) + decay * p). `names` are those of base_rates.
    """
    limit, moments = config.max_grad_norm, (adamw.b1, adamw.b2, adamw.eps)
    return optax.chain(
        optax.clip_by_global_norm(limit) if limit > 0 else optax.identity(),
        scale_by_adam8bit(*moments)
        if config.kind == "adamw8bit"
        else optax.scale_by_adam(*moments, mu_dtype=jnp.dtype(config.first_moment_dtype)),
        optax.add_decayed_weights(adamw.weight_decay),
        scale_by_rates(base_rates(names, config.learning_rate, config.groups), config.schedule),
    )


def ema(
    mean: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
    """decay * mean + (1 - decay) * adapters, exact where they are equal; float32 by path."""
    return {path: m + (1 - decay) * (adapters[path] - m) for path, m in mean.items()}
