"""States on disk: the mean, saves that fail, and reading beside a run that saves."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toy import export
from safetensors.numpy import load_file

from justdubit_jax.errors import InputError
from justdubit_jax.lora import files as lora_files
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training.step import State


def test_the_mean_is_the_adapters_running_mean(four_steps):
    first, second = export(four_steps, 1), export(four_steps, 2)
    mean = load_file(RunFolder(four_steps).lora(2, mean=True))
    assert mean.keys() == second.keys()
    for key in (key for key in mean if "lora_B" in key):  # which start as zeros
        want = 0.75 * 0.25 * first[key] + 0.25 * second[key]
        np.testing.assert_allclose(mean[key], want, atol=1e-9)
    with Checkpoints(four_steps / "state", read_only=True) as checkpoints:
        saved = lora_files.file_tensors(checkpoints.adapters(2, mean=True))
    assert all((saved[key] == mean[key]).all() for key in mean)


def test_a_disk_without_room_is_noticed_before_it_is_full(tmp_path, monkeypatch):
    state = State({"a": jnp.zeros(9)}, {"m": jnp.zeros(9)}, jnp.int32(1))
    usage = shutil.disk_usage(tmp_path)._replace(free=20)
    with Checkpoints(tmp_path / "state") as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match=r"not saved: it takes .* are free; complete steps: "):
            checkpoints.save(state, {})


def test_reading_touches_nothing_of_a_run_that_saves(tmp_path):
    """Opened to write, the one removes what the other is about to name, or to remove."""
    state = State({"a": jnp.arange(9.0)}, {"m": jnp.zeros(9)}, jnp.int32(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"lora": {}})
    for name in ("2.orbax-checkpoint-tmp", ".removed-0"):
        (tmp_path / name / "adapters").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [1]
        np.testing.assert_array_equal(checkpoints.adapters(1)["a"], state.adapters["a"])
        assert checkpoints.meta(1) == {"lora": {}}
        with pytest.raises(AssertionError):
            checkpoints.save(state, {})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(2)), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_reading_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "state", read_only=True) as checkpoints:
        assert checkpoints.steps == []
    assert not (tmp_path / "state").exists()


def test_what_cannot_be_read_is_one_line(tmp_path):
    state = State({"a": jnp.arange(9.0)}, {"m": jnp.zeros(9)}, jnp.int32(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(InputError, match="no step 2; complete steps: 1"):
            checkpoints.adapters(2)
        with pytest.raises(InputError, match="1: no mean; "):
            checkpoints.adapters(1, mean=True)
        shutil.rmtree(tmp_path / "1/adapters/d", ignore_errors=True)
        shutil.rmtree(tmp_path / "1/adapters/ocdbt.process_0")
        with pytest.raises(InputError, match="1: adapters not read"):
            checkpoints.adapters(1)
