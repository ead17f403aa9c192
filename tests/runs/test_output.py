"""A run's folder: its names, and what is moved, kept and refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers.toy import EXTRAS, FOUR, config, same

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.runs.output import Best, RunFolder, read_best, write_best
from justdubit_jax.runs.state import Checkpoints

FOLDER = RunFolder(Path("run"))


@pytest.mark.parametrize("step", [7, 250, 123456])
@pytest.mark.parametrize("mean", [False, True])
def test_the_step_of_a_lora_file_is_in_its_name(step, mean):
    file = FOLDER.lora(step, mean)
    assert FOLDER.step_of(file) == step and file.match(str(FOLDER.any_lora))


def test_names_are_the_torch_trainers():
    assert FOLDER.lora(250) == Path("run/checkpoints/lora_weights_step_00250.safetensors")
    assert FOLDER.lora(3, mean=True).name == "lora_weights_step_00003_ema.safetensors"
    assert FOLDER.sample(100, 1) == Path("run/samples/step_000100_1.mp4")
    assert FOLDER.sample(100, 1).match(str(FOLDER.any_sample))


def test_everything_that_belongs_to_one_run_moves_aside():
    """All but the contexts, which the next run uses again, and the runs moved before."""
    values = [getattr(FOLDER, name) for name in dir(RunFolder) if not name.startswith("_")]
    paths = {value for value in values if isinstance(value, Path) and value.parent == FOLDER.path}
    assert paths - {FOLDER.contexts, FOLDER.previous} == set(FOLDER.moved_by_fresh)


def test_the_best_comes_back_as_it_was_named(tmp_path):
    folder, best = RunFolder(tmp_path), Best(250, 0.125, "lora_weights_step_00250.safetensors")
    assert read_best(folder) is None
    write_best(folder, best)
    assert read_best(folder) == best
    assert json.loads(folder.best.read_text()) == dataclasses.asdict(best)


@pytest.mark.deep
def test_fresh_moves_the_run_aside(demo, four_steps, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(four_steps, output)
    train.main(config(demo, output, *FOUR, *EXTRAS), fresh=True)
    assert same(RunFolder(output).lora(4), RunFolder(four_steps).lora(4))
    assert same(RunFolder(output / "previous/1").lora(4), RunFolder(four_steps).lora(4))


def test_lora_files_without_their_state_are_not_overwritten(demo, four_steps, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(four_steps / "checkpoints", output / "checkpoints")
    with pytest.raises(InputError, match="--fresh, which moves them"):
        train.main(config(demo, output, *FOUR))


@pytest.mark.deep
def test_the_best_step_is_never_removed(demo, tmp_path):
    flags = (
        *("--config.optimization.steps=4", "--config.checkpoints.interval=1"),
        *("--config.checkpoints.keep_last_n=1", "--config.checkpoints.keep_best=True"),
        "--config.validation.holdout=1",
        "--config.validation.interval=0",
        "--config.optimization.learning_rate=0.3",  # the loss rises
    )
    train.main(config(demo, tmp_path, *flags))
    best = json.loads((tmp_path / "best.json").read_text())["step"]
    kept = {best, 4}
    assert set(Checkpoints(tmp_path / "state", read_only=True).steps) == kept
    assert {RunFolder.step_of(path) for path in (tmp_path / "checkpoints").iterdir()} == kept
