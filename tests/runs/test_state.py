"""Runs that must not be lost: interrupted, poisoned, continued otherwise, on a full disk."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import ONE_DEVICE, REPO
from helpers.lines import json_lines
from helpers.toy import config, export, one_step
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.runs import fingerprint, metrics
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training import settings
from justdubit_jax.training.objective import Draw, Objective
from justdubit_jax.training.step import State

FOUR = ("--config.optimization.steps=4", "--config.checkpoints.interval=1")


@pytest.fixture(scope="module")
def finished(demo, tmp_path_factory):
    """Four steps with dropout and a running mean, each saved."""
    output = tmp_path_factory.mktemp("run") / "out"
    train.main(config(demo, output, *FOUR, *EXTRAS))
    return output


EXTRAS = ("--config.lora.dropout=0.1", "--config.optimization.ema_decay=0.75")
EXTRAS += ("--config.checkpoints.precision=float32",)


def same(a: Path, b: Path) -> bool:
    """Whether two LoRA files are equal to the bit (but for the order of their metadata)."""
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all((left[k] == right[k]).all() for k in left)


def test_sigterm_saves_and_the_same_command_continues(demo, finished, tmp_path, monkeypatch):
    def add(self, at, *rest):
        original(self, at, *rest)
        if at == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    original = metrics.Metrics.add
    every = "--config.checkpoints.interval=2"
    run = config(demo, tmp_path / "out", *FOUR, *EXTRAS, every)
    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "add", add)
        train.main(run)
    assert Checkpoints(tmp_path / "out/state").steps == [2, 3]
    assert lora_files.export_path(tmp_path / "out", 3).is_file()
    train.main(run)
    for mean in (False, True):
        assert same(
            lora_files.export_path(tmp_path / "out", 4, mean),
            lora_files.export_path(finished, 4, mean),
        )


def test_sigterm_before_the_first_step_exits_with_0(demo, tmp_path, monkeypatch):
    def load(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "load_base", load)
    with pytest.raises(SystemExit) as ended:
        train.main(config(demo, tmp_path / "out", *FOUR))
    assert ended.value.code == 0


def test_the_mean_is_the_adapters_running_mean(finished):
    first, second = export(finished, 1), export(finished, 2)
    mean = load_file(lora_files.export_path(finished, 2, mean=True))
    assert mean.keys() == second.keys()
    for key in (key for key in mean if "lora_B" in key):  # which start as zeros
        want = 0.75 * 0.25 * first[key] + 0.25 * second[key]
        np.testing.assert_allclose(mean[key], want, atol=1e-9)
    with contextlib.closing(Checkpoints(finished / "state")) as checkpoints:
        saved = lora_files.file_tensors(checkpoints.adapters(2, mean=True))
    assert all((saved[key] == mean[key]).all() for key in mean)


def fixed_draw(self, key, batch, frames):
    """Noise that depends on the sample alone."""
    size = len(batch.video.target)
    video, audio = (jnp.sin(37 * stream.target) for stream in (batch.video, batch.audio))
    return Draw(jnp.full(size, 0.7), video, audio, jnp.zeros(size, bool))


def test_accumulation_equals_one_large_batch(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(Objective, "draw", fixed_draw)
    alike = "--config.training_strategy.mask_config.use_masked_loss=False"
    whole = one_step(demo, tmp_path, 1, 1, 8, alike)
    parts = one_step(
        demo, tmp_path, 1, 1, 2, alike, "--config.optimization.gradient_accumulation_steps=4"
    )
    for name, want in whole[0].items():
        assert parts[0][name] == pytest.approx(want, rel=1e-5)  # float32 sums in another order
    for path, want in whole[1].items():
        np.testing.assert_allclose(parts[1][path], want, atol=1e-5 * np.abs(want).max())


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
    saved = Checkpoints(tmp_path / "out/state")
    assert len(saved.steps) == 1
    run = settings.read(config(demo, tmp_path / "out", *flags))
    kept = saved.adapters(saved.steps[0])
    want = lora.init(kept, jax.random.key(run.seed))
    assert all((kept[path] == want[path]).all() for path in want)


def test_fresh_moves_the_run_aside(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    train.main(config(demo, output, *FOUR, *EXTRAS), fresh=True)
    assert same(lora_files.export_path(output, 4), lora_files.export_path(finished, 4))
    assert same(
        lora_files.export_path(output / "previous/1", 4), lora_files.export_path(finished, 4)
    )


def test_lora_files_without_their_state_are_not_overwritten(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished / "checkpoints", output / "checkpoints")
    with pytest.raises(InputError, match="--fresh, which moves them"):
        train.main(config(demo, output, *FOUR))


@pytest.mark.parametrize(
    "flag",
    [
        "lora.rank=4",
        "seed=1",
        "optimization.learning_rate=1e-4",
        "validation.holdout=1",
        "training_strategy.first_frame_conditioning_p=0.5",
    ],
)
def test_a_run_is_not_continued_as_another(demo, finished, tmp_path, flag):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    with pytest.raises(InputError, match=re.escape(flag.partition("=")[0])):
        train.main(config(demo, output, *FOUR, *EXTRAS, f"--config.{flag}"))


def test_harmless_keys_may_change(demo, finished, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    flags = ("--config.optimization.steps=5", "--config.checkpoints.interval=5")
    train.main(config(demo, output, *EXTRAS, *flags, "--config.mesh.data=2"))  # two devices now
    assert "mesh.data" in capsys.readouterr().err
    assert lora_files.export_path(output, 5).is_file()
    assert [r["step"] for r in json_lines(output / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_another_data_set_under_the_same_name_is_noticed(demo, finished):
    mark = Checkpoints(finished / "state").meta(4)["fingerprint"]
    other = fingerprint.fingerprint(config(demo, finished, *FOUR, *EXTRAS), {}, ["x"])
    with pytest.raises(InputError, match="the data set is another"):
        fingerprint.check_same(mark, other | {fingerprint.BASE: mark[fingerprint.BASE]})


def test_a_line_that_a_kill_cut_off_does_not_count(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "state/4")
    lora_files.export_path(output, 4).unlink()
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    (output / "checkpoints/.lora_weights_step_00004.tmp-1.safetensors").write_bytes(b"half")
    train.main(config(demo, output, *FOUR, *EXTRAS))
    assert same(lora_files.export_path(output, 4), lora_files.export_path(finished, 4))
    assert not list(output.glob("checkpoints/.*"))


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
    assert set(Checkpoints(tmp_path / "state").steps) == kept
    assert {lora_files.step_of(path) for path in (tmp_path / "checkpoints").iterdir()} == kept


SAVING = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from justdubit_jax import cli
from justdubit_jax.runs import state as checkpoint
folder = Path(sys.argv[1])
state = checkpoint.State({"a": jnp.arange(1e6)}, {"m": jnp.arange(1e6)}, jnp.int32(1))
def save():
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        checkpoints.save(state._replace(step=jnp.int32(2)), {})
cli.exiting(save)
"""


def test_a_state_that_cannot_be_written_is_one_line(tmp_path):
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*: a step was not saved: .*\n", done.stderr), done.stderr
    assert Checkpoints(tmp_path).steps == [1]


def test_a_disk_without_room_is_noticed_before_it_is_full(tmp_path, monkeypatch):
    state = State({"a": jnp.zeros(9)}, {"m": jnp.zeros(9)}, jnp.int32(1))
    usage = shutil.disk_usage(tmp_path)._replace(free=20)
    with Checkpoints(tmp_path / "state") as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match=r"not saved: it takes .* are free; complete steps: "):
            checkpoints.save(state, {})


def test_a_kill_at_a_random_moment_changes_nothing(demo):
    """The short form; `tools/kill_test.py --kills 20` is the long one."""
    command = [sys.executable, "tools/kill_test.py", "--kills", "1", "--steps", "6", "--plain"]
    done = subprocess.run(
        [*command, "--demo", str(demo)], capture_output=True, text=True, cwd=REPO, env=ONE_DEVICE
    )
    assert done.returncode == 0, done.stderr
    assert "the same LoRA after 1 kills" in done.stdout
