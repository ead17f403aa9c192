"""What a run needs, read off the compiled step: memory by part, and operations."""

import dataclasses
import math
from collections import Counter
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from justdubit_jax.data.batch import Batch
from justdubit_jax.latents.text import PROMPT_TOKENS
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models import tokens
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.planning import flops
from justdubit_jax.planning.flops import StepFlops, TokenCounts
from justdubit_jax.planning.stand_in import flash_stand_in
from justdubit_jax.training import objective
from justdubit_jax.training.prepare import Training, sample_of_shape


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


def compile_step(training: Training, sample: Batch, grid: tuple[int, int, int]) -> Program:
    """Compile the step for samples like this one, of that latent grid."""
    step = training.lower(sample, grid).compile()
    return Program(step, make_plan(training, sample, step))


def sample_of_size(
    config: TransformerConfig, width: int, height: int, frames: int, frame_rate: Fraction
) -> tuple[Batch, tuple[int, int, int]]:
    """Shapes of a sample of that many pixels, its reference as long, and its latent grid."""
    pixels = tokens.PIXELS_PER_LATENT
    grid = tokens.video_latent_frames(frames), height // pixels, width // pixels
    audio = tokens.audio_latent_frames(float(frames / frame_rate))
    return sample_of_shape(config, grid, audio, PROMPT_TOKENS), grid


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


def gb(count: float) -> str:
    """In GB, 1e9 bytes; a toy's in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
