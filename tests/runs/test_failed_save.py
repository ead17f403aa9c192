"""Saves that fail, in processes of their own: what is printed, and what is not."""

import asyncio
import gc
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import tensorstore
from helpers.commands import REPO

from justdubit_jax.runs.failed_save import ThreadErrors
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training.step import State

SAVING = """
import logging, resource, sys, threading
from pathlib import Path
import jax.numpy as jnp
from justdubit_jax import cli
from justdubit_jax.runs import state as checkpoint

# Many arrays: when one has failed, the others are still being written.
def tree(name):
    return {f"{name}{i}": jnp.arange(1e5) + i for i in range(20)}

class Unrelated:
    def __del__(self):
        raise RuntimeError("Event loop is closed")

def others(when):
    thread = threading.Thread(target=lambda: int(f"thread {when}"))
    thread.start()
    thread.join()
    Unrelated()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).error(f"{name} {when}")

folder, tell = Path(sys.argv[1]), others if sys.argv[2] == "others" else lambda when: None
state = checkpoint.State(tree("a"), tree("m"), jnp.int32(1))

def save():
    try:
        with checkpoint.Checkpoints(folder) as checkpoints:
            checkpoints.save(state, {})
            tell("while a save runs")
            checkpoints.wait()
            tell("before")
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            checkpoints.save(state._replace(step=jnp.int32(2)), {})
    finally:
        tell("after")

cli.exiting(save)
"""


def failing_save(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SAVING, str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO)


def test_it_is_one_line(tmp_path):
    done = failing_save(tmp_path, "alone")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*: a step was not saved: .*\n", done.stderr), done.stderr
    assert Checkpoints(tmp_path, read_only=True).steps == [1]


def test_unrelated_errors_are_printed_as_ever(tmp_path):
    done = failing_save(tmp_path, "others")
    assert done.returncode == 2
    for when in ("while a save runs", "before", "after"):
        for said in (f"thread {when}", f"absl {when}", f"asyncio {when}"):
            assert said in done.stderr
    assert done.stderr.count("Unrelated.__del__") == 3
    assert done.stderr.count("Traceback") == 6 and done.stderr.count("a step was not saved") == 1


def test_what_nobody_awaited_is_left_out(tmp_path, caplog):
    """A future of TensorStore's that fails when nobody waits any more: asyncio logs it."""
    damaged = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{tmp_path}/"}}
    (tmp_path / "manifest.ocdbt").write_bytes(b"no manifest")

    async def left_alone():
        lost = asyncio.get_running_loop().create_future()
        lost.set_exception((await asyncio.wait([as_task(damaged)]))[0].pop().exception())

    async def opening(spec):
        await tensorstore.open(spec)

    def as_task(spec):
        return asyncio.ensure_future(opening(spec))

    for errors, records in ((ThreadErrors(), 0), (None, 1)):
        if errors:
            errors.begin()
        asyncio.run(left_alone())
        gc.collect()
        assert len(caplog.records) == records
        if errors:
            errors.complete()


def process_wide() -> list:
    """Everything through which this process prints errors."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hooks = [sys.excepthook, sys.unraisablehook]
    return hooks + [(logger.level, list(logger.filters)) for logger in loggers]


def test_only_a_save_that_runs_changes_what_is_printed(tmp_path):
    before = process_wide()
    state = State({"a": jnp.arange(9.0)}, {"m": jnp.zeros(9)}, jnp.int32(1))
    with Checkpoints(tmp_path) as checkpoints:
        assert process_wide() == before
        checkpoints.save(state, {})
        assert process_wide() != before
        checkpoints.wait()
        assert process_wide() == before
    with Checkpoints(tmp_path, read_only=True):
        assert process_wide() == before
