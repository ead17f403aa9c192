"""What a run needs, read off the compiled step: memory by part, operations, and whether it fits."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console, Group
from rich.table import Table

from justdubit_jax.data.batch import Batch
from justdubit_jax.errors import InputError
from justdubit_jax.latents import text as codec
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models import tokens
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.planning import flops
from justdubit_jax.planning.flops import StepFlops, TokenCounts
from justdubit_jax.planning.stand_in import flash_stand_in
from justdubit_jax.training import objective
from justdubit_jax.training.prepare import Training, sample_of_shape
from justdubit_jax.training.settings import Settings


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
    """One bucket's step."""

    training: Training
    counts: TokenCounts
    memory: Memory
    flops: StepFlops  # of all samples of a step, on all devices
    stood_in: bool  # flash attention could not be compiled


class Program(NamedTuple):
    """A compiled step, (state, frozen, batch) -> (state, metrics), and what it needs."""

    run: Any
    plan: Plan


def compiled(training: Training, sample: Batch, grid: tuple[int, int, int]) -> Program:
    """Compile the step for samples like this one, of that latent grid."""
    step = training.lower(sample, grid).compile()
    return Program(step, make_plan(training, sample, step))


def sample_like_validation(
    run: Settings, config: TransformerConfig
) -> tuple[Batch, tuple[int, int, int]]:
    """Shapes of a sample at `validation.video_dims`, its reference as long, and its latent grid."""
    v, pixels = run.validation, tokens.PIXELS_PER_LATENT
    grid = tokens.video_latent_frames(v.frames), v.height // pixels, v.width // pixels
    audio = tokens.audio_latent_frames(float(v.frames / v.frame_rate))
    return sample_of_shape(config, grid, audio, codec.PROMPT_TOKENS), grid


def make_plan(training: Training, sample: Batch, compiled: Any) -> Plan:
    """The plan of a compiled step for samples like this one."""
    analysis = compiled.memory_analysis()
    run, mesh, state = training.run, training.mesh, training.abstract_state
    arguments = {
        "base": _bytes_here(training.frozen),
        "lora": _bytes_here(state.adapters),
        "optimizer": _bytes_here(state.moments),
        "mean": 0 if state.mean is None else _bytes_here(state.mean),
        "batch": run.accumulation * run.batch_size * _bytes(sample),
    }
    gradients = arguments["lora"] * (1 if run.accumulation == 1 else 2)
    activations = run.batch_size * _kept_bytes(training, sample)
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    workspace = total - sum(arguments.values()) - gradients - activations
    counts = token_counts(sample)
    samples = run.accumulation * run.batch_size * mesh.size
    return Plan(
        training=training,
        counts=counts,
        memory=Memory(
            **arguments, gradients=gradients, activations=activations, workspace=workspace
        ),
        flops=step_flops(training, counts, samples),
        stood_in=training.execution.attend is flash_stand_in,
    )


def token_counts(sample: Batch) -> TokenCounts:
    """Tokens of a sample without the batch axis."""
    return TokenCounts(
        video=sample.video.positions.shape[1],
        audio=sample.audio.positions.shape[1],
        text=sample.video.context.shape[0],
        video_reference=sample.video.reference.shape[0],
        audio_reference=sample.audio.reference.shape[0],
    )


def step_flops(training: Training, counts: TokenCounts, samples: int) -> StepFlops:
    """Operations of a step of that many samples."""
    run = training.run
    one = flops.step_flops(
        training.model.config,
        counts,
        rank=run.lora.rank,
        targets=run.lora.target_modules,
        remat=run.remat != "none",
        isolated=run.isolate,
    )
    return StepFlops(*(samples * x for x in dataclasses.astuple(one)))


def peak_flops(mesh: Any) -> float | None:
    """Operations per second of all devices of a mesh, if the device is known."""
    one = flops.peak_flops(mesh.devices.flat[0].device_kind)
    return None if one is None else one * mesh.size


def device_memory() -> int | None:
    """Bytes that a device of this machine gives to JAX, if it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def _kept_bytes(training: Training, sample: Batch) -> int:
    """Bytes per sample that the forward pass keeps for the backward pass: what its vjp closes over
    and is none of the arguments."""
    run = training.run
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), jnp.float32), sample)
    draws = jax.eval_shape(
        lambda b: objective.draw(jax.random.key(0), b, run.sampling, run.first_frame_p, 2), batch
    )

    def vjp(adapters: Any, frozen: Any, batch: Batch, draws: objective.Draw) -> Any:
        def loss(adapters: Any) -> Any:
            return objective.loss(
                lora.merge(training.graphdef, adapters, frozen),
                batch,
                draws,
                grid=(1, 1, sample.video.target.shape[0]),
                mask_loss=run.mask_loss,
                isolate=run.isolate,
                dtype=run.dtype,
                cross_timestep=training.cross_timestep,
                execution=training.execution,
            )[0]

        return jax.vjp(loss, adapters)[1]

    arguments = dict(training.adapters), training.frozen, batch, draws
    kept = Counter((x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(vjp, *arguments)))
    kept -= Counter((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
    return sum(math.prod(shape) * dtype.itemsize * n for (shape, dtype), n in kept.items())


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
    """Bytes of the shards on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def check_fits(plan: Plan, limit: int | None) -> None:
    """Raise InputError, with what to switch, if the step does not fit into `limit` bytes."""
    if limit is not None and plan.memory.total > limit:
        switches = "; ".join(f"{what} ({gb(left)})" for what, left in advice(plan, limit))
        raise InputError(
            f"config: a step needs {gb(plan.memory.total)}, the device has {gb(limit)}; "
            f"in order of cost: {switches}"
        )


def gb(count: float) -> str:
    """In GB, 1e9 bytes; a toy's in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def summary(plan: Plan, limit: int | None) -> str:
    """One line."""
    parts = {k: v for k, v in dataclasses.asdict(plan.memory).items() if v}
    listed = ", ".join(f"{name} {gb(count)}" for name, count in parts.items())
    of = "" if limit is None else f" of {gb(limit)}"
    work = plan.flops.model / 1e12
    return f"a step: {gb(plan.memory.total)}{of} a device ({listed}); {work:.3g} TFLOP in the model"


def advice(plan: Plan, limit: int) -> Iterator[tuple[str, int]]:
    """What to switch, in order of cost, until it fits, and the bytes needed then (estimated).

    Each switch is on top of those before it.
    """
    run, memory = plan.training.run, plan.memory
    left = memory.total
    for what, saved in _switches(run, memory):
        if left <= limit:
            return
        if saved > 0:
            left -= int(saved)
            yield what, left
    if left > limit:
        yield "a smaller video (preprocess --resolution-buckets), or more devices", left


def _switches(run: Settings, memory: Memory) -> Iterator[tuple[str, float]]:
    """Every switch that is not on yet, and about what it saves; cheapest first."""
    state = memory.lora + memory.optimizer + memory.mean + memory.gradients
    optimizer = memory.optimizer
    if run.batch_size > 1:
        share = 1 - 1 / run.batch_size
        saved = (memory.activations + memory.workspace) * share
        yield "optimization.batch_size=1 with gradient_accumulation_steps instead", saved
    if run.remat in ("none", "attention"):
        yield "optimization.enable_gradient_checkpointing=True", 0.9 * memory.activations
    if run.optimizer.kind == "adamw" and run.optimizer.first_moment_dtype == "float32":
        yield "optimization.first_moment_dtype=bfloat16", optimizer / 4
        optimizer *= 3 / 4
    if run.optimizer.kind == "adamw":
        yield "optimization.optimizer_type=adamw8bit", optimizer - memory.lora / 2
        state += memory.lora / 2 - memory.optimizer
    if run.quantization is None:
        yield "acceleration.quantization=int8", memory.base * 0.49
    yield (
        "optimization.enable_gradient_checkpointing=offload",
        (0.0 if run.remat == "offload" else 0.9 * min(memory.activations, 0.1 * memory.base)),
    )
    if run.lora.rank > 32:
        yield "lora.rank=32", state * (1 - 32 / run.lora.rank)
    if run.quantization in (None, "int8", "fp8"):
        now = memory.base * (0.51 if run.quantization is None else 1)
        yield "acceleration.quantization=nf4", now * 0.45


def show(console: Console, plan: Plan, limit: int | None) -> None:
    """What a person wants to know before a run."""
    training, memory = plan.training, plan.memory
    console.print(Group(_modules(training), _parameters(training), _memory(memory)))
    counts, work = plan.counts, plan.flops
    console.print(
        f"tokens: {counts.video} video ({counts.video_reference} of the reference), "
        f"{counts.audio} audio ({counts.audio_reference}), {counts.text} text; "
        f"{training.run.accumulation} x {training.run.batch_size} samples a device, "
        f"{training.mesh.size} devices"
    )
    console.print(
        f"operations: {work.model / 1e12:.4g} TFLOP a step in the model, "
        f"{work.total / 1e12:.4g} with what is recomputed"
    )
    if plan.stood_in:
        console.print(
            "compiled for a CPU: flash attention, which a CPU has not, is stood in for by its "
            "memory, and workspace includes float32 copies that a GPU does not make"
        )
    if limit is None:
        console.print("the device's memory is not known: give --device-memory, e.g. 80GB")
    elif memory.total <= limit:
        console.print(f"fits: {gb(memory.total)} of {gb(limit)}")
    else:
        console.print(f"does not fit: {gb(memory.total)} of {gb(limit)}; in order of cost:")
        for what, left in advice(plan, limit):
            console.print(f"  {what}: about {gb(left)}")


def _modules(training: Training) -> Table:
    table = Table("LoRA target", "modules", title="adapters")
    for target, names in training.targets.items():
        table.add_row(target, str(len(names)))
    return table


def _parameters(training: Training) -> Table:
    """Parameters by part and type; bytes are of all devices together."""
    found: Counter[tuple[str, str]] = Counter()
    state = training.abstract_state
    parts: Mapping[str, Any] = {
        "base, blocks": training.frozen["blocks"],
        "base, around the blocks": {k: v for k, v in training.frozen.items() if k != "blocks"},
        "LoRA": state.adapters,
        "optimizer": state.moments,
        "running mean": state.mean,
    }
    for name, tree in parts.items():
        for leaf in jax.tree.leaves(tree):
            found[name, str(leaf.dtype)] += math.prod(leaf.shape)
    table = Table("part", "type", "numbers", "bytes", title="parameters")
    for (name, dtype), count in found.items():
        table.add_row(name, dtype, f"{count:,}", gb(count * np.dtype(dtype).itemsize))
    return table


def _memory(memory: Memory) -> Table:
    table = Table("on one device", "bytes", title="memory of a step")
    for name, count in dataclasses.asdict(memory).items():
        table.add_row(name, gb(count))
    table.add_row("total", gb(memory.total), style="bold")
    return table
