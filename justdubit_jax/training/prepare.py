"""A run as far as it is known before a weight is read, and how its state starts."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from justdubit_jax.data.batch import Batch, MicroBatches, SampleShape
from justdubit_jax.data.batches import Batches
from justdubit_jax.data.samples import ShapeGroup
from justdubit_jax.devices import sharding
from justdubit_jax.errors import InputError, about
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.dialects import PEFT, is_stacked
from justdubit_jax.lora.files import newest_lora
from justdubit_jax.lora.record import read_record
from justdubit_jax.models.attention import Attend, Remat, attention
from justdubit_jax.models.tokens import Layout
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.training.objective import Objective
from justdubit_jax.training.optimizer import make_optimizer
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.step import State, StepConfig, make_step
from justdubit_jax.weights.checkpoint import Checkpoint
from justdubit_jax.weights.keys import TRANSFORMER
from justdubit_jax.weights.load import abstract_weights, load_weights


@dataclasses.dataclass(frozen=True)
class Training:
    """A run as far as it is known before a weight is read: structure, shapes, places, the step."""

    run: Settings
    mesh: Mesh
    config: TransformerConfig
    layout: Layout
    targets: Mapping[str, Sequence[str]]  # LoRA target -> the modules that it matches
    graphdef: nnx.GraphDef  # of the transformer with its adapters
    abstract: lora.Weights  # shapes, dtypes and shardings
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    place: State  # shardings
    step: jax.stages.Wrapped

    @property
    def abstract_state(self) -> State:
        """The state's shapes, types and shardings, without the arrays."""
        shapes = dict(self.abstract.adapters)
        mean = None if self.place.mean is None else shapes
        moments = jax.eval_shape(self.optimizer.init, shapes)
        counter: Any = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            State(shapes, moments, counter, mean),
            self.place,
        )

    def lower(self, shape: SampleShape) -> jax.stages.Lowered:
        """The step for samples of that shape, ready to compile."""
        size, place = self.run.batch_size * self.mesh.size, sharding.micro_batches(self.mesh)
        batches = shape.micro_batches(self.run.accumulation, size, place)
        return self.step.lower(self.abstract_state, self.abstract.frozen, batches, shape.grid)


def prepare_training(
    run: Settings, config: Mapping[str, Any], mesh: Mesh, attend: Attend = attention
) -> Training:
    """Everything before the first array, for a checkpoint's `config` metadata.

    `attend` computes the attention; a plan may take another's memory in its place. Raises
    InputError if a LoRA target matches nothing.
    """
    transformer_config = TransformerConfig.from_metadata(dict(config))
    with about("config: lora.target_modules"):
        model, targets = lora.adapted_model(transformer_config, run.lora)
    place = functools.partial(sharding.weight, mesh)
    stored = abstract_weights(TRANSFORMER, model, run.dtype, place, run.quantization)
    graphdef, *arrays = lora.split(stored)
    abstract = lora.Weights(*arrays)
    # Learning-rate patterns are searched in PEFT's names, as in the torch trainer.
    names = {path: PEFT.keys_of(path, leaf.shape) for path, leaf in abstract.adapters.items()}
    _check_groups(run, model)
    optimizer = make_optimizer(run.optimizer, names)
    state = state_shardings(abstract.adapters, optimizer, mesh, mean=run.ema_decay > 0)
    objective = Objective(
        sampling=run.sampling,
        first_frame_p=run.first_frame_p,
        mask_loss=run.mask_loss,
        isolate=run.isolate,
        cross_timestep=run.cross_timestep or transformer_config.cross_timestep,
        dtype=run.dtype,
        execution=sharding.execution(mesh, run.remat or "full", attend),
    )
    return Training(
        run=run,
        mesh=mesh,
        config=model.config,
        layout=Layout.from_metadata(dict(config)),
        targets=targets,
        graphdef=graphdef,
        abstract=abstract,
        objective=objective,
        optimizer=optimizer,
        place=state,
        step=_make_step(run, objective, graphdef, optimizer, mesh, state),
    )


def _check_groups(run: Settings, model: Transformer) -> None:
    """Raise InputError for a learning-rate group that is found in no parameter of the model."""
    modules = lora.module_names(model)
    names = [PEFT.pattern.format(module=name, matrix=m) for name in modules for m in "AB"]
    for pattern, _ in run.optimizer.groups:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, _words(names), 3, 0.6)
            like = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise InputError(
                f"config: optimization.learning_rate_groups: {pattern!r} is found in no name of "
                f"the model's parameters, e.g. {names[0]}{like}"
            )


def _words(names: Sequence[str]) -> list[str]:
    return sorted({word for name in names for word in name.split(".") if not word.isdigit()})


def recomputing(training: Training, remat: Remat) -> Training:
    """The training whose backward pass recomputes something else."""
    t = training
    execution = t.objective.execution._replace(remat=remat)
    objective = dataclasses.replace(t.objective, execution=execution)
    step = _make_step(t.run, objective, t.graphdef, t.optimizer, t.mesh, t.place)
    return dataclasses.replace(t, objective=objective, step=step)


def _make_step(run: Settings, *parts: Any) -> jax.stages.Wrapped:
    """`make_step` with a run's seed, dropout and running mean."""
    return make_step(StepConfig(run.seed, run.lora.dropout, run.ema_decay), *parts)


def state_shardings(
    shapes: Mapping[str, Any],
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    mean: bool,
) -> State:
    """Where the adapters, their moments, the step counter and, if kept, their mean live."""
    place: Any = {
        path: sharding.weight(mesh, leaf.shape, stacked=is_stacked(path))
        for path, leaf in shapes.items()
    }
    everywhere: Any = sharding.replicated(mesh)

    def of_moment(path: Any, leaf: Any) -> Any:  # moments are trees of the adapters' paths
        adapter = place.get(getattr(path[-1], "key", ""), everywhere)
        return sharding.shortened(adapter, leaf.shape)

    abstract = jax.eval_shape(optimizer.init, dict(shapes))
    moments = jax.tree_util.tree_map_with_path(of_moment, abstract)
    return State(place, moments, everywhere, place if mean else None)


def first_state(training: Training) -> State:
    """Adapters as PEFT starts them, or from `model.load_checkpoint`; born with their shardings."""
    run, shapes, place = training.run, training.abstract.adapters, training.place
    if run.load_checkpoint is None:
        start = jax.jit(lambda key: lora.init(shapes, key), out_shardings=place.adapters)
        adapters = start(jax.random.key(run.seed))
    else:
        with about("config: model.load_checkpoint"):
            file = newest_lora(run.load_checkpoint)
        with about("config: model.load_checkpoint, for lora.rank and lora.target_modules"):
            read = lora_files.read_file(file, shapes)
        adapters = sharding.place_whole(read, place.adapters)
    moments = jax.jit(training.optimizer.init, out_shardings=place.moments)(adapters)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=place.step)()
    mean = None
    if place.mean is not None:  # a copy, since the first step gives the adapters away
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=place.mean)
        mean = copy(adapters)
    return State(adapters, moments, step, mean)


def check_start(training: Training) -> None:
    """Raise InputError if the LoRA to start from was trained to another scale or rule than this
    run's."""
    run = training.run
    if run.load_checkpoint is None:
        return
    with about("config: model.load_checkpoint"):
        file = newest_lora(run.load_checkpoint)
    with about("config: model.load_checkpoint, for lora.rank and lora.target_modules"):
        config, record = lora_files.config_of(file), read_record(file)
    own = run.lora.alpha / run.lora.rank
    if config.rank == run.lora.rank and config.alpha / config.rank != own:
        times = own * config.rank / config.alpha
        raise InputError(
            f"config: model.load_checkpoint: {file} has alpha {config.alpha:g}, lora.alpha is "
            f"{run.lora.alpha:g}: its effect would be {times:g} times as strong; "
            f"set lora.alpha={config.alpha:g}"
        )
    rule = training.objective.cross_timestep
    if record.cross_timestep not in (None, rule):
        raise InputError(
            f"config: model.load_checkpoint: {file} was trained with model.cross_timestep "
            f"{record.cross_timestep!r}, this run has {rule!r}; set it to the same"
        )


def load_base(training: Training, source: Checkpoint) -> Any:
    """The frozen weights of a checkpoint, on their devices."""
    run, place = training.run, functools.partial(sharding.weight, training.mesh)
    model, _ = lora.adapted_model(training.config, run.lora)
    loaded = load_weights(source, TRANSFORMER, model, run.dtype, place, run.quantization)
    return lora.split(loaded)[2]


def make_batches(training: Training, groups: Sequence[ShapeGroup]) -> Batches:
    """Batches of this process's share of the samples of a step."""
    run, hosts = training.run, jax.process_count()
    size = run.accumulation * run.batch_size * training.mesh.size // hosts
    return Batches(
        groups, training.layout, size, run.seed, run.reader_threads, jax.process_index(), hosts
    )


def place_batch(training: Training, batch: Batch) -> MicroBatches:
    """This process's samples as its part of what a step takes."""
    place = sharding.micro_batches(training.mesh)
    local = batch.in_micro_batches(training.run.accumulation)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), local)
