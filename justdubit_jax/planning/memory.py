"""What a run needs, read off the compiled step: memory by part, and operations."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from justdubit_jax.data.batch import Batch, SampleShape, StreamShape
from justdubit_jax.latents.text import PROMPT_TOKENS
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.attention import Execution, Remat, xla_attention
from justdubit_jax.models.tokens import Layout
from justdubit_jax.models.transformer_config import StreamConfig, TransformerConfig
from justdubit_jax.planning import flops
from justdubit_jax.planning.flops import StepFlops
from justdubit_jax.planning.stand_in import flash_stand_in
from justdubit_jax.training.objective import Draw, Objective
from justdubit_jax.training.prepare import Training


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs. `workspace` is what the compiler needs besides."""

    base: int
    lora: int
    optimizer: int
    mean: int
    batch: int
    gradients: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Arguments, results that reuse none of them, and temporaries of the compiled program."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The step of samples of one shape."""

    training: Training
    shape: SampleShape
    memory: Memory
    flops: StepFlops  # of all samples of a step, on all devices
    stood_in: bool  # flash attention could not be compiled


class Program(NamedTuple):
    """A compiled step, (state, frozen, micro-batches) -> (state, metrics), and what it needs."""

    run: jax.stages.Compiled
    plan: Plan


def compile_step(
    training: Training, shape: SampleShape, options: Mapping[str, Any] | None = None
) -> Program:
    """Compile the step for samples of that shape; `options` are the compiler's."""
    step = training.lower(shape).compile(dict(options) if options else None)
    return Program(step, make_plan(training, shape, step))


def shape_of_size(
    config: TransformerConfig,
    layout: Layout,
    width: int,
    height: int,
    frames: int,
    frame_rate: Fraction,
) -> SampleShape:
    """A sample of that many pixels with a face mask, its reference as long as its target."""
    grid = layout.grid(frames, height, width)
    audio = layout.audio_latent_frames(float(frames / frame_rate))

    def stream(sizes: StreamConfig, tokens: int, axes: int) -> StreamShape:
        text = PROMPT_TOKENS, sizes.context_dim
        return StreamShape(tokens, tokens, sizes.in_channels, axes, *text)

    return SampleShape(
        grid=grid,
        video=stream(config.video, math.prod(grid), 3),
        audio=stream(config.audio, audio, 1),
        has_mask=True,
    )


def make_plan(training: Training, shape: SampleShape, step: jax.stages.Compiled) -> Plan:
    """The plan of a compiled step for samples of that shape."""
    run, known = training.run, _known_bytes(training, shape)
    workspace = program_bytes(step) - sum(known.values())
    samples = run.accumulation * run.batch_size * training.mesh.size
    return Plan(
        training=training,
        shape=shape,
        memory=Memory(**known, workspace=workspace),
        flops=sample_flops(training, shape).times(samples),
        stood_in=training.objective.execution.attend is flash_stand_in,
    )


def least_bytes(training: Training, shape: SampleShape) -> int:
    """What the step's own arrays take on a device, whatever the compiler needs besides."""
    return sum(_known_bytes(training, shape).values())


def _known_bytes(training: Training, shape: SampleShape) -> dict[str, int]:
    """The parts of Memory that follow from shapes, by name.

    With the gradients counts what the adapters are rounded to: both are half as wide in bfloat16.
    """
    run, state = training.run, training.abstract_state
    lora = _bytes_here(state.adapters)
    kept = _known("kept", training, training.objective, shape, _kept_bytes)
    return {
        "base": _bytes_here(training.abstract.frozen),
        "lora": lora,
        "optimizer": _bytes_here(state.moments),
        "mean": 0 if state.mean is None else _bytes_here(state.mean),
        "batch": run.accumulation * run.batch_size * _bytes(shape.sample()),
        "gradients": lora * (1 if run.accumulation == 1 else 2),
        "activations": run.batch_size * int(kept),
    }


def program_bytes(program: jax.stages.Compiled) -> int:
    """What a compiled program takes on a device: arguments, results that reuse none of them, and
    temporaries."""
    analysis: Any = program.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def sample_flops(training: Training, shape: SampleShape) -> StepFlops:
    """Operations of the loss and its gradient for one sample."""

    def at(remat: Remat) -> float:
        # XLA's attention, whose products can be seen, and no devices.
        objective = dataclasses.replace(
            training.objective, execution=Execution(remat, attend=xla_attention)
        )
        return _known("operations", training, objective, shape, _gradient_flops)

    return StepFlops(at("none"), at(training.objective.execution.remat))


# What tracing said of a loss. It takes seconds, and a run plans the same loss once for each way to
# place its step. Numbers alone: a training would keep its compiled programs alive.
_KNOWN: dict[Hashable, float] = {}


def _known(
    what: str,
    training: Training,
    objective: Objective,
    shape: SampleShape,
    trace: Callable[[Training, Objective, SampleShape], float],
) -> float:
    """`trace` of a training's loss by an objective, or what it was for one of equal structure."""
    arguments = _arguments(training, shape)
    leaves = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
    structure = jax.tree.structure(arguments)
    key = what, training.graphdef, objective, shape, structure, leaves
    if key not in _KNOWN:
        _KNOWN[key] = trace(training, objective, shape)
    return _KNOWN[key]


def _gradient_flops(training: Training, objective: Objective, shape: SampleShape) -> float:
    def gradient(adapters: lora.Adapters, *rest: Any) -> Any:
        return jax.value_and_grad(lambda a: _loss(training, objective, shape, a, *rest))(adapters)

    return flops.count(gradient, *_arguments(training, shape))


def peak_flops_of_mesh(mesh: Mesh) -> float | None:
    """Operations per second of all devices of a mesh, if the device is known."""
    one = flops.peak_flops(mesh.devices.flat[0].device_kind)
    return None if one is None else one * mesh.size


def device_memory() -> int | None:
    """Bytes that a device of this machine gives to JAX, if it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def _kept_bytes(training: Training, objective: Objective, shape: SampleShape) -> int:
    """Bytes per sample that the forward pass keeps for the backward pass: what its vjp closes over
    and is none of the arguments."""

    def vjp(adapters: lora.Adapters, *rest: Any) -> Any:
        return jax.vjp(lambda a: _loss(training, objective, shape, a, *rest), adapters)[1]

    arguments = _arguments(training, shape)
    kept = Counter((x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(vjp, *arguments)))
    kept -= Counter((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
    return sum(math.prod(shape) * dtype.itemsize * n for (shape, dtype), n in kept.items())


def _arguments(training: Training, shape: SampleShape) -> tuple[lora.Adapters, Any, Batch, Draw]:
    """What the loss of one sample takes, as shapes."""
    batch = shape.batch(1)
    draws = jax.eval_shape(
        lambda b: training.objective.draw(jax.random.key(0), b, shape.grid[0]), batch
    )
    return dict(training.abstract.adapters), training.abstract.frozen, batch, draws


def _loss(
    training: Training,
    objective: Objective,
    shape: SampleShape,
    adapters: lora.Adapters,
    frozen: Any,
    batch: Batch,
    draws: Draw,
) -> jax.Array:
    model = lora.merge(training.graphdef, adapters, frozen)
    return objective.loss(model, batch, draws, shape.grid)[0]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
    """Bytes of the shards on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def gb(count: float) -> str:
    """In GB, 1e9 bytes; a toy's in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
