"""Many devices and several processes: the same training, and no more traffic than it needs."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import COMPILE_FAST, REPO
from helpers.lines import json_lines
from helpers.toy import config
from safetensors.numpy import load_file

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.planning.memory import compile_step
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training
from justdubit_jax.weights.checkpoint import open_checkpoint

FLAGS = (
    "--config.optimization.steps=2",
    "--config.checkpoints.interval=1",
    "--config.checkpoints.precision=float32",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=2",
)


def start(demo: Path, output: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """Two processes of one device each, which find one another by environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "tests/helpers/one_of_two.py", "--config", "configs/demo.py"),
                f"--config.model.model_path={demo / 'assets/ltx-2-tiny.safetensors'}",
                f"--config.data.preprocessed_data_root={demo / 'dataset/.precomputed'}",
                f"--config.output_dir={output}",
                *flags,
            ],
            env=os.environ
            | {"XLA_FLAGS": COMPILE_FAST, "JAX_COORDINATOR_ADDRESS": address}
            | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPO,
        )
        for index in range(2)
    ]


@pytest.mark.deep
def test_two_processes_train_as_one_does(demo, tmp_path):
    processes = start(demo, tmp_path / "two", *FLAGS)
    printed = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors[-3000:]
    noise = [line for out, _ in printed for line in out.splitlines() if line.startswith("noise")]
    assert len(noise) == 2 and len(set(noise)) == 2
    assert "error" not in printed[1][1] and "step 1/2" not in printed[1][1]  # one of them tells

    train.main(config(demo, tmp_path / "one", *FLAGS))
    losses = [
        [r["loss"] for r in json_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # float32 sums in another order
    one, two = (load_file(RunFolder(tmp_path / name).lora(1)) for name in ("one", "two"))
    rate = settings.read(config(demo, tmp_path, *FLAGS)).optimizer.learning_rate
    moved = np.concatenate([np.abs(two[key] - one[key]).ravel() for key in one]) / rate
    assert np.median(moved) < 1e-3  # Adam's first step is the gradient's sign, noise where it is 0


@pytest.fixture(scope="module")
def sharded(demo, tmp_path_factory):
    """The training over 2 x 4 devices and its compiled step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_SMALLEST_SHARDED", 2)
        flags = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
        run = settings.read(config(demo, tmp_path_factory.mktemp("sharded"), *flags))
        source = open_checkpoint(run.model_path)
        training = prepare_training(run, source.config, sharding.make_mesh(*run.mesh))
        return training, compile_step(training, train.read_data(run)[0][0].shape).run


def collectives(text: str, *kinds: str) -> list[tuple[int, ...]]:
    """The shapes of everything that collectives of these kinds put out."""
    found = []
    for line in text.splitlines():
        if match := re.search(rf"= (.*?) (?:{'|'.join(kinds)})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
    return found


def test_one_block_is_gathered_at_a_time(sharded):
    training, compiled = sharded
    stacks = {
        leaf.shape for leaf in jax.tree.leaves(training.abstract.frozen) if len(leaf.shape) == 3
    }
    gathered = collectives(compiled.as_text(), "all-gather")
    blocks = {shape[1:] for shape in stacks}
    assert any(shape[-2:] in blocks for shape in gathered)  # they are gathered at all
    assert not set(gathered) & stacks


def test_no_stack_is_copied(sharded):
    """A collective that wants another layout makes XLA copy the stack ahead of the loop."""
    training, compiled = sharded
    text = compiled.as_text()
    for leaf in jax.tree.leaves(training.abstract.frozen):
        if len(leaf.shape) == 3:
            shard = ",".join(map(str, leaf.sharding.shard_shape(leaf.shape)))
            assert not re.search(rf"\w+\[{shard}\]\S* copy\(", text), shard


def test_no_frozen_weight_gets_a_gradient(sharded):
    training, compiled = sharded
    kernels = {
        leaf.shape for leaf in jax.tree.leaves(training.abstract.frozen) if len(leaf.shape) > 1
    }
    kernels |= {shape[1:] for shape in kernels if len(shape) == 3}
    reduced = collectives(compiled.as_text(), "all-reduce", "reduce-scatter")
    assert reduced and not {tuple(n for n in shape if n > 1) for shape in reduced} & kernels
