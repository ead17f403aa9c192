"""A run as far as it is known before a weight is read, and how its state starts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from justdubit_jax.data.batch import Batch, Stream
from justdubit_jax.devices import sharding
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.files import newest_lora
from justdubit_jax.models.attention import Attend, Execution, attention
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import CrossTimestep, TransformerConfig
from justdubit_jax.training.optimizer import make_optimizer
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.step import State, make_step
from justdubit_jax.weights.load import abstract_weights

# PEFT's name of a parameter, which learning-rate patterns are searched in.
_PARAMETER_NAME = "base_model.model.{}.default.weight"


@dataclasses.dataclass(frozen=True)
class Training:
    """A run as far as it is known before a weight is read: structure, shapes, places, the step."""

    run: Settings
    mesh: Any
    model: Transformer  # abstract, with its adapters
    targets: Mapping[str, Sequence[str]]  # LoRA target -> the modules that it matches
    graphdef: Any
    adapters: Mapping[str, jax.ShapeDtypeStruct]
    frozen: Any  # abstract, with shardings
    optimizer: optax.GradientTransformationExtraArgs
    place: State  # shardings
    step: Any  # jitted
    cross_timestep: CrossTimestep
    execution: Execution

    @property
    def abstract_state(self) -> State:
        """The state's shapes, types and shardings, without the arrays."""
        shapes = dict(self.adapters)
        mean = None if self.place.mean is None else shapes
        moments = jax.eval_shape(self.optimizer.init, shapes)
        counter: Any = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            State(shapes, moments, counter, mean),
            self.place,
        )

    def lower(self, sample: Batch, grid: tuple[int, int, int]) -> Any:
        """The step for samples like this one (shapes or arrays), ready to compile."""
        size, place = self.run.batch_size * self.mesh.size, sharding.micro_batches(self.mesh)

        def batched(x: Any) -> jax.ShapeDtypeStruct:
            shape = (self.run.accumulation, size, *x.shape)
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

        batch = jax.tree.map(batched, sample)
        return self.step.lower(self.abstract_state, self.frozen, batch, grid)


def prepare_training(
    run: Settings, config: Mapping[str, Any], mesh: Any, attend: Attend = attention
) -> Training:
    """Everything before the first array, for a checkpoint's `config` metadata.

    `attend` computes the attention; a plan may take another's memory in its place. Raises
    InputError if a LoRA target matches nothing.
    """
    model, targets = lora.adapted_model(config, run.lora)
    place = functools.partial(sharding.weight, mesh)
    stored = abstract_weights(model, run.dtype, place, run.quantization)
    graphdef, adapters, frozen = lora.split(stored)
    names = {
        path: [_PARAMETER_NAME.format(name) for name in lora.names(path, leaf.shape)]
        for path, leaf in adapters.items()
    }
    optimizer = make_optimizer(run.optimizer, names)
    state = state_shardings(adapters, optimizer, mesh, mean=run.ema_decay > 0)
    cross_timestep: CrossTimestep = run.cross_timestep or "own"  # LTX-2.0's, the only one so far
    execution = sharding.execution(mesh, run.remat, attend)
    return Training(
        run=run,
        mesh=mesh,
        model=model,
        targets=targets,
        graphdef=graphdef,
        adapters=adapters,
        frozen=frozen,
        optimizer=optimizer,
        place=state,
        step=make_step(run, graphdef, optimizer, mesh, state, cross_timestep, execution),
        cross_timestep=cross_timestep,
        execution=execution,
    )


def state_shardings(
    shapes: Mapping[str, Any],
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Any,
    mean: bool,
) -> State:
    """Where the adapters, their moments, the step counter and, if kept, their mean live."""
    place: Any = {path: sharding.weight(mesh, path, leaf.shape) for path, leaf in shapes.items()}
    everywhere: Any = sharding.replicated(mesh)

    def of_moment(path: Any, leaf: Any) -> Any:  # moments are trees of the adapters' paths
        adapter = place.get(getattr(path[-1], "key", ""), everywhere)
        return sharding.shortened(adapter, leaf.shape)

    abstract = jax.eval_shape(optimizer.init, dict(shapes))
    moments = jax.tree_util.tree_map_with_path(of_moment, abstract)
    return State(place, moments, everywhere, place if mean else None)


def first_state(training: Training) -> State:
    """Adapters as PEFT starts them, or from `model.load_checkpoint`; born with their shardings."""
    run, shapes, place = training.run, training.adapters, training.place
    if run.load_checkpoint is None:
        start = jax.jit(lambda key: lora.init(shapes, key), out_shardings=place.adapters)
        adapters = start(jax.random.key(run.seed))
    else:
        file = newest_lora(run.load_checkpoint)
        adapters = sharding.place_whole(lora_files.read_file(file, shapes), place.adapters)
    moments = jax.jit(training.optimizer.init, out_shardings=place.moments)(adapters)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=place.step)()
    mean = None
    if place.mean is not None:  # a copy, since the first step gives the adapters away
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=place.mean)
        mean = copy(adapters)
    return State(adapters, moments, step, mean)


def sample_of_shape(
    config: TransformerConfig, grid: tuple[int, int, int], audio_tokens: int, context_tokens: int
) -> Batch:
    """The shapes of a sample with a face mask whose reference is as long as its target."""

    def stream(count: int, axes: int, channels: int) -> Stream:
        target = jax.ShapeDtypeStruct((count, channels), jnp.float32)
        positions = jax.ShapeDtypeStruct((axes, 2 * count, 2), jnp.float32)
        context = jax.ShapeDtypeStruct((context_tokens, config.caption_channels), jnp.float32)
        return Stream(target, target, positions, context)  # type: ignore[arg-type]

    count = int(np.prod(grid))
    return Batch(
        video=stream(count, 3, config.video.in_channels),
        audio=stream(audio_tokens, 1, config.audio.in_channels),
        face_mask=jax.ShapeDtypeStruct((count,), jnp.float32),  # type: ignore[arg-type]
    )
