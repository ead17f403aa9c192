"""Training runs on the demo's files."""

from pathlib import Path

import jax
import numpy as np
from helpers.commands import REPO
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from justdubit_jax import cli, train
from justdubit_jax.data.batches import Batches
from justdubit_jax.devices import sharding
from justdubit_jax.planning.memory import compile_step
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import first_state, load_base, place_batch, prepare_training
from justdubit_jax.weights.checkpoint import open_checkpoint

FOUR = ("--config.optimization.steps=4", "--config.checkpoints.interval=1")
EXTRAS = ("--config.lora.dropout=0.1", "--config.optimization.ema_decay=0.75")
EXTRAS += ("--config.checkpoints.precision=float32",)


def config(demo: Path, output: Path, *more: str) -> ConfigDict:
    return cli.parse_config(
        [
            "train",
            *("--config", str(REPO / "configs/demo.py"), f"--config.output_dir={output}"),
            f"--config.model.model_path={demo / 'assets/ltx-2-tiny.safetensors'}",
            f"--config.data.preprocessed_data_root={demo / 'dataset/.precomputed'}",
            "--config.mesh.data=1",  # one of the eight devices, where a test does not say
            *more,
        ]
    )


def one_step(demo, tmp_path, data_axis: int, fsdp: int, batch_size: int, *more: str):
    """Loss terms, first moments and updated adapters after one step on eight samples."""
    mesh_flags = (f"--config.mesh.data={data_axis}", f"--config.mesh.fsdp={fsdp}", *more)
    run = settings.read(
        config(demo, tmp_path, *mesh_flags, f"--config.optimization.batch_size={batch_size}")
    )
    mesh = sharding.make_mesh(*run.mesh)
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, mesh)
    frozen = load_base(training, source)
    wanted = jax.tree.leaves(training.abstract.frozen)
    for want, leaf in zip(wanted, jax.tree.leaves(frozen), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (want.shape, want.dtype, want.sharding)
    before = jax.tree.map(np.array, frozen)
    state = first_state(training)
    groups, _ = train.read_data(run)
    per_step = run.accumulation * batch_size * mesh.size
    group, _, batch = next(Batches(groups, training.layout, per_step, 0, 0))
    program = compile_step(training, group.shape)
    state, metrics = program.run(state, frozen, place_batch(training, batch))
    jax.tree.map(np.testing.assert_array_equal, before, frozen)
    return jax.tree.map(float, metrics), state.moments[1].mu, state.adapters


def export(output: Path, step: int) -> dict[str, np.ndarray]:
    return load_file(RunFolder(output).lora(step))


def same(a: Path, b: Path) -> bool:
    """Whether two LoRA files are equal to the bit (but for the order of their metadata)."""
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all((left[k] == right[k]).all() for k in left)
