"""The other programs of a run on random weights: their time and memory beside the planner's."""

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks.size import REPO
from checks.machine import timed
from checks.result import Row
from checks.training import largest_that_fits

from justdubit_jax import cli
from justdubit_jax.devices import sharding
from justdubit_jax.planning.cards import Card, card_of
from justdubit_jax.planning.estimate import estimate
from justdubit_jax.planning.memory import program_bytes, shape_of_size
from justdubit_jax.planning.phases import PHASES, Phase, Work
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training
from justdubit_jax.validation.settings import read_validation

# The published checkpoint's metadata.
_METADATA = REPO / "tests" / "ltx-2-19b-dev.config.json"


def check(small: bool, runs: int) -> Iterator[Row]:
    work, card = work_of(small), card_of(jax.devices()[0].device_kind)
    yield Row("blocks", str(work.training.config.layers))
    # The text's Gemma has no metadata here; the codecs are of the published size, minutes on a CPU.
    for name in ("heldout", "sample") if small else ("heldout", "sample", "encode", "decode"):
        yield from _rows(name, PHASES[name], work, card, runs)


def work_of(small: bool) -> Work:
    """The published model with a sample of validation, as many blocks as fit; a toy on a CPU."""
    metadata = json.loads(_METADATA.read_text())
    transformer = metadata["transformer"]
    transformer["num_layers"] = 2 if small else largest_that_fits().layers
    sizes = (640, 352, 121)
    if small:
        transformer |= {"num_attention_heads": 2, "audio_num_attention_heads": 2}
        transformer |= {"cross_attention_dim": 256, "audio_cross_attention_dim": 128}
        sizes = (64, 64, 9)
    config = cli.read_config(
        REPO / "configs/dub.py",
        {
            "model.model_path": _METADATA,
            "mesh.data": 1,
            "acceleration.mixed_precision_mode": "no" if small else "bf16",
            "validation.video_dims": sizes,
        },
    )
    run = settings.read(config)
    training = prepare_training(run, metadata, sharding.make_mesh(*run.mesh))
    shape = shape_of_size(training.config, training.layout, *sizes, Fraction(25))
    return Work(training, read_validation(config), shape, metadata, None)


def _rows(name: str, phase: Phase, work: Work, card: Card | None, runs: int) -> Iterator[Row]:
    lowered = phase(work)
    start = time.perf_counter()
    program = lowered.compile()
    yield Row(f"{name}: compiled in", time.perf_counter() - start, "s")
    arguments = _random(lowered, sharding.replicated(work.training.mesh))
    seconds = timed(program, *arguments, runs=runs)
    expected = estimate(program.as_text() or "", card).seconds if card else None
    yield Row(f"{name}: seconds", seconds, "s", expected=expected)
    yield Row(f"{name}: memory by the compiler", program_bytes(program) / 1e9, "GB")


def _random(lowered: jax.stages.Lowered, place: jax.sharding.Sharding) -> Any:
    """Small random numbers as a program's arguments."""
    leaves, structure = jax.tree.flatten(lowered.args_info[0])
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [
        jax.device_put(_numbers(key, leaf.shape, leaf.dtype), place)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


@jax.jit(static_argnums=(1, 2))
def _numbers(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return (jax.random.normal(key, shape, jnp.bfloat16) / 50).astype(dtype)
    return jax.random.bits(key, shape, jnp.uint8).astype(dtype)
