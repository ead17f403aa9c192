"""The training step: what it changes, and the jitted function itself."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from justdubit_jax.data.batch import Batch, MicroBatches
from justdubit_jax.devices import sharding
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora.adapters import Adapters
from justdubit_jax.training.objective import Objective
from justdubit_jax.training.optimizer import ema

Grid = tuple[int, int, int]  # a target's latent frames, rows, columns


class State(NamedTuple):
    """What a step changes. `step` counts the steps made; `mean` is the adapters' running mean."""

    adapters: Adapters
    moments: Any
    step: jax.Array
    mean: Adapters | None = None


Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the step is made of besides the objective and the optimizer."""

    seed: int
    dropout: float  # probability of dropping an adapter's input
    ema_decay: float  # of the adapters' running mean


def make_step(
    config: StepConfig,
    objective: Objective,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    place: State,
) -> jax.stages.Wrapped:
    """The jitted step: (state, frozen, micro-batches, grid) -> (state, metrics); state is donated.

    The gradient is the mean of those of the micro-batches' losses. A step whose loss or gradient is
    not finite changes nothing but the step counter, so that the next one draws other noise. `place`
    are the shardings of the state.
    """

    def gradients_of(adapters: Adapters, frozen: Any, batch: Batch, key: Array, grid: Grid) -> Any:
        draw_key, dropout_key = jax.random.split(key)
        draws = objective.draw(draw_key, batch, grid[0])

        def loss(adapters: Adapters) -> Any:
            # Rounded to what the model runs in once, not in every block and pass over it.
            adapters = jax.tree.map(lambda x: x.astype(objective.dtype), adapters)
            model = lora.merge(graphdef, adapters, frozen)
            seed_block = lora.seed_all(model, dropout_key) if config.dropout else None
            return objective.loss(model, batch, draws, grid, seed_block)

        return jax.grad(loss, has_aux=True)(adapters)

    def step(state: State, frozen: Any, batches: MicroBatches, grid: Grid) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradients, metrics = _mean_over_micro_batches(
            lambda batch, key: gradients_of(state.adapters, frozen, batch, key, grid), batches, key
        )
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, moments = optimizer.update(
            gradients, state.moments, state.adapters, step=state.step
        )
        adapters: Any = optax.apply_updates(state.adapters, updates)
        mean = state.mean and ema(state.mean, adapters, config.ema_decay)
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


def _mean_over_micro_batches(
    gradients_of: Callable[[Batch, Array], Any], batches: MicroBatches, key: Array
) -> Any:
    """(gradients, metrics) of `gradients_of(batch, key)`, averaged over the micro-batches."""
    first = Batch(*jax.tree.map(lambda x: x[0], batches))
    if batches.parts == 1:
        return gradients_of(first, key)

    def add(total: Any, numbered: tuple[Array, MicroBatches]) -> tuple[Any, None]:
        index, one = numbered
        found = gradients_of(Batch(*one), jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, found), None

    shapes = jax.eval_shape(gradients_of, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(batches.parts), batches))
    return jax.tree.map(lambda x: x / batches.parts, total)
