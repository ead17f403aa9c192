"""The training step: what it changes, and the jitted function itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from justdubit_jax.data.batch import Batch
from justdubit_jax.devices import sharding
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora.adapters import Adapters
from justdubit_jax.models.attention import Execution
from justdubit_jax.models.transformer_config import CrossTimestep
from justdubit_jax.training import objective
from justdubit_jax.training.optimizer import ema
from justdubit_jax.training.settings import Settings


class State(NamedTuple):
    """What a step changes. `step` counts the steps made; `mean` is the adapters' running mean."""

    adapters: Adapters
    moments: Any
    step: jax.Array
    mean: Adapters | None = None


def make_step(
    run: Settings,
    graphdef: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Any,
    place: State,
    cross_timestep: CrossTimestep,
    execution: Execution,
) -> Any:
    """The jitted step: (state, frozen, batch, grid) -> (state, metrics); state is donated.

    A batch's leaves are [micro-batches, samples, ...]; the gradient is the mean of those of the
    micro-batches' losses. A step whose loss or gradient is not finite changes nothing but the
    step counter, so that the next one draws other noise.
    """

    def gradients_of(adapters: Any, frozen: Any, batch: Batch, key: Any, grid: Any) -> Any:
        draw_key, dropout_key = jax.random.split(key)
        draws = objective.draw(draw_key, batch, run.sampling, run.first_frame_p, grid[0])

        def loss(adapters: lora.Adapters) -> Any:
            model = lora.merge(graphdef, adapters, frozen)
            seed_block = lora.seed_all(model, dropout_key) if run.lora.dropout else None
            return objective.loss(
                model,
                batch,
                draws,
                grid=grid,
                mask_loss=run.mask_loss,
                isolate=run.isolate,
                dtype=run.dtype,
                cross_timestep=cross_timestep,
                execution=execution,
                prepare_block=seed_block,
            )

        return jax.grad(loss, has_aux=True)(adapters)

    def step(state: State, frozen: Any, batch: Batch, grid: tuple[int, int, int]) -> Any:
        key = jax.random.fold_in(jax.random.key(run.seed), state.step)
        gradients, metrics = _mean_over_micro_batches(
            lambda batch, key: gradients_of(state.adapters, frozen, batch, key, grid), batch, key
        )
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, moments = optimizer.update(
            gradients, state.moments, state.adapters, step=state.step
        )
        adapters: Any = optax.apply_updates(state.adapters, updates)
        mean = state.mean and ema(state.mean, adapters, run.ema_decay)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        changed = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (adapters, moments, mean),
            (state.adapters, state.moments, state.mean),
        )
        return State(changed[0], changed[1], state.step + 1, changed[2]), metrics

    return jax.jit(
        step,
        static_argnums=3,
        donate_argnums=0,
        # The frozen weights come as they were loaded.
        in_shardings=(place, None, sharding.micro_batches(mesh)),
        out_shardings=(place, sharding.replicated(mesh)),
    )


def _mean_over_micro_batches(gradients_of: Any, batch: Batch, key: jax.Array) -> Any:
    """(gradients, metrics) of `gradients_of(micro-batch, key)`, averaged over the leading axis."""
    count = batch.video.target.shape[0]
    first = jax.tree.map(lambda x: x[0], batch)
    if count == 1:
        return gradients_of(first, key)

    def add(total: Any, numbered: Any) -> Any:
        index, micro = numbered
        found = gradients_of(micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, found), None

    shapes = jax.eval_shape(gradients_of, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), batch))
    return jax.tree.map(lambda x: x / count, total)


def micro_batches(batch: Batch, count: int) -> Batch:
    """Samples [count * b, ...] as micro-batches [count, b, ...]."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
