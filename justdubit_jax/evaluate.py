"""The loss as a number that can be compared: fixed samples, fixed sigmas, fixed noise."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from justdubit_jax import data, lora, objective
from justdubit_jax.data import Bucket
from justdubit_jax.models.transformer import CrossTimestep
from justdubit_jax.settings import Settings

SIGMAS = (0.2, 0.4, 0.6, 0.8, 1.0)


def fixed_loss(
    run: Settings,
    graphdef: Any,
    frozen: Any,
    adapters: Iterable[lora.Adapters],
    buckets: Iterable[Bucket],
    cross_timestep: CrossTimestep,
) -> list[dict[str, float]]:
    """Mean loss terms of each set of adapters over all samples at SIGMAS, without gradients.

    The noise of a sample depends on its name alone, and the first frame is never given, so the
    same weights give the same numbers on every run.
    """

    @jax.jit(static_argnames="grid")
    def losses(adapters: lora.Adapters, frozen: Any, batch: Any, draws: Any, grid: Any) -> Any:
        model = lora.merge(graphdef, adapters, frozen)
        return objective.loss(
            model,
            batch,
            draws,
            grid=grid,
            mask_loss=run.mask_loss,
            isolate=run.isolate,
            dtype=run.dtype,
            cross_timestep=cross_timestep,
        )[1]

    samples = [(bucket, sample) for bucket in buckets for sample in bucket.samples]
    means = []
    for one in adapters:
        terms = []
        for bucket, sample in samples:
            batch = jax.tree.map(lambda x: jnp.asarray(x)[None], data.read_sample(sample))
            key = jax.random.key(np.frombuffer(sample.name.encode(), np.uint8).sum())
            for sigma in SIGMAS:
                draws = objective.draw(key, batch, run.sampling, 0.0, bucket.grid[0])
                draws = draws._replace(sigma=jnp.full((1,), sigma))
                terms.append(losses(one, frozen, batch, draws, bucket.grid))
        stacked = jax.tree.map(lambda *x: float(np.mean(x)), *terms)
        means.append(stacked)
    return means
