"""Runs whose numbers are not finite, and lines that a kill cut off."""

import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.lines import json_lines
from helpers.published import published
from helpers.toy import EXTRAS, FOUR, config, export, same
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.metrics import open_logs
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training import settings


def poisoned(demo: Path, folder: Path, names: list[str]) -> Path:
    """A copy of the demo's latents in which these samples' sound is not a number."""
    shutil.copytree(demo / "dataset/.precomputed", folder)
    for name in names:
        path = folder / f"audio_latents/clips/{name}_media.safetensors"
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        tensors = {key: np.full_like(x, np.nan) for key, x in load_file(path).items()}
        save_file(tensors, path, metadata)
    return folder


def test_a_step_that_is_not_finite_is_named_and_not_applied(demo, tmp_path, capsys):
    root = poisoned(demo, tmp_path / "data", ["002"])
    train.main(
        config(demo, tmp_path / "out", *FOUR, f"--config.data.preprocessed_data_root={root}")
    )
    printed = capsys.readouterr().err
    assert printed.count("not finite, step not applied") == 1  # one epoch of four samples
    assert str(root / "latents/clips/002_media.safetensors") in printed
    lines = json_lines(tmp_path / "out/metrics.jsonl")
    assert [r["loss"] is None for r in lines].count(True) == 1
    assert all(
        np.isfinite(x.astype(np.float32)).all() for x in export(tmp_path / "out", 4).values()
    )


def test_three_in_a_row_stop_the_training_with_the_last_good_state(demo, tmp_path):
    root = poisoned(demo, tmp_path / "data", ["000", "001", "002", "003"])
    flags = (f"--config.data.preprocessed_data_root={root}", "--config.optimization.steps=4")
    with pytest.raises(InputError, match=r"step 1: .*step 2: .*step 3: .*_media.safetensors"):
        train.main(config(demo, tmp_path / "out", *flags))
    saved = Checkpoints(tmp_path / "out/state", read_only=True)
    assert len(saved.steps) == 1
    run = settings.read(config(demo, tmp_path / "out", *flags))
    kept = saved.adapters(saved.steps[0])
    want = lora.init(kept, jax.random.key(run.seed))
    assert all((kept[path] == want[path]).all() for path in want)


def test_a_line_that_a_kill_cut_off_does_not_count(demo, four_steps, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(four_steps, output)
    shutil.rmtree(output / "state/4")
    RunFolder(output).lora(4).unlink()
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    (output / "checkpoints/.lora_weights_step_00004.tmp-1.safetensors").write_bytes(b"half")
    train.main(config(demo, output, *FOUR, *EXTRAS))
    assert same(RunFolder(output).lora(4), RunFolder(four_steps).lora(4))
    assert not list(output.glob("checkpoints/.*"))


def test_wandb_is_told_what_the_settings_say(tmp_path, monkeypatch):
    told = {}

    def init(**arguments):
        told.update(arguments)
        nothing = dict.fromkeys(("log", "define_metric", "finish"), lambda *_, **__: None)
        return types.SimpleNamespace(**nothing)

    fake = types.SimpleNamespace(init=init, Error=RuntimeError, Html=str)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    flags = ("wandb.enabled=True", "wandb.entity=us", "wandb.tags=('a', 'b')")
    run = settings.read(published(*flags, f"output_dir={tmp_path}"))
    for log in open_logs(RunFolder(tmp_path), run.wandb, 0, ""):
        log.close()
    assert (told["project"], told["entity"], told["tags"]) == ("justdubit", "us", ["a", "b"])
