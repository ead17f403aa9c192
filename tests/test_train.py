"""Training on the demo's files: devices, resume, checkpoints, configuration."""

import json
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.commands import REPO, run_module
from helpers.lines import json_lines
from helpers.toy import config, export, one_step
from safetensors import safe_open

from justdubit_jax import cli, train
from justdubit_jax.devices import sharding
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import first_state, prepare_training
from justdubit_jax.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def single(demo, tmp_path_factory):
    return one_step(demo, tmp_path_factory.mktemp("one"), 1, 1, 8)


@pytest.mark.deep
@pytest.mark.parametrize(("data_axis", "fsdp"), [(2, 4)])
def test_eight_devices_give_the_step_of_one(demo, tmp_path, single, monkeypatch, data_axis, fsdp):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 2)  # the toy's weights are all below it
    metrics, moments, adapters = one_step(demo, tmp_path, data_axis, fsdp, 1)
    for name, want in single[0].items():
        assert metrics[name] == pytest.approx(want, rel=1e-5)  # float32 sums in another order
    # First moments, so gradients: the step itself is their sign, which is noise where they vanish.
    for path, want in single[1].items():
        np.testing.assert_allclose(moments[path], want, atol=1e-5 * np.abs(want).max())
    if fsdp > 1:
        specs = {str(leaf.sharding.spec) for leaf in adapters.values()}
        assert any("fsdp" in spec for spec in specs)


def test_the_base_is_frozen_by_type(demo, tmp_path):
    run = settings.read(config(demo, tmp_path))
    transformer = TransformerConfig.from_metadata(open_checkpoint(run.model_path).config)
    model, matched = lora.adapted_model(transformer, run.lora)
    kinds = {type(v) for _, v in nnx.to_flat_state(nnx.state(model))}
    assert kinds == {Frozen, nnx.LoRAParam}
    assert {target: len(names) for target, names in matched.items()} == {
        "to_k": 18,
        "to_q": 18,
        "to_v": 18,
        "to_out.0": 18,
        "net.0.proj": 6,
        "net.2": 6,
    }


@pytest.mark.parametrize(("asked", "rule"), [("auto", "own"), ("own", "own"), ("other", "other")])
def test_whose_timesteps_modulate_is_asked_for_or_the_checkpoints(demo, tmp_path, asked, rule):
    run = settings.read(config(demo, tmp_path, f"--config.model.cross_timestep={asked}"))
    mesh = sharding.make_mesh(*run.mesh)
    training = prepare_training(run, open_checkpoint(run.model_path).config, mesh)
    assert training.objective.cross_timestep == rule


SHORT = ("--config.optimization.steps=4", "--config.checkpoints.interval=2")


@pytest.fixture(scope="module")
def finished(demo, tmp_path_factory):
    """A run of four steps with dropout, saved at two and four."""
    output = tmp_path_factory.mktemp("run") / "out"
    train.main(config(demo, output, *SHORT, "--config.lora.dropout=0.1"))
    return output


def test_continuing_is_bit_equal_to_not_stopping(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "state/4")
    RunFolder(output).lora(4).unlink()
    train.main(config(demo, output, *SHORT, "--config.lora.dropout=0.1"))
    want, got = export(finished, 4), export(output, 4)
    assert want.keys() == got.keys()
    assert all((want[key] == got[key]).all() for key in want)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    losses = [r["loss"] for r in json_lines(finished / "metrics.jsonl")]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert [r["loss"] for r in steps] == losses


def test_a_finished_run_started_again_does_nothing(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    before = RunFolder(output).lora(4).stat().st_mtime_ns
    train.main(config(demo, output, *SHORT, "--config.lora.dropout=0.1"))
    assert RunFolder(output).lora(4).stat().st_mtime_ns == before


@pytest.mark.deep
def test_a_lora_file_lost_in_a_crash_is_written_again(demo, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    RunFolder(output).lora(4).unlink()
    train.main(config(demo, output, *SHORT, "--config.lora.dropout=0.1"))
    assert export(output, 4).keys() == export(finished, 4).keys()


def test_the_file_says_what_it_was_trained_with(finished):
    with safe_open(RunFolder(finished).lora(4), framework="numpy") as file:
        metadata = file.metadata()
        dtypes = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118
    assert metadata["cross_timestep"] == "own"
    assert (metadata["rank"], metadata["alpha"], metadata["step"]) == ("8", "8", "4")
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.deep
def test_starting_from_a_lora_file(demo, finished, tmp_path):
    flags = (
        f"--config.model.load_checkpoint={finished / 'checkpoints'}",
        "--config.optimization.learning_rate=0.0",
        "--config.optimization.learning_rate_groups=()",
        "--config.optimization.steps=1",
        "--config.checkpoints.precision=float32",
    )
    train.main(config(demo, tmp_path / "out", *flags))
    got, want = export(tmp_path / "out", 1), export(finished, 4)
    assert all((got[key] == want[key].astype(np.float32)).all() for key in want)


@pytest.mark.deep
def test_keep_last_n_counts_steps_and_files_alike(demo, tmp_path):
    flags = (
        "--config.optimization.steps=3",
        "--config.checkpoints.interval=1",
        "--config.checkpoints.keep_last_n=2",
    )
    train.main(config(demo, tmp_path / "out", *flags))
    files = sorted(p.name for p in (tmp_path / "out/checkpoints").iterdir())
    assert files == ["lora_weights_step_00002.safetensors", "lora_weights_step_00003.safetensors"]
    assert sorted(p.name for p in (tmp_path / "out/state").iterdir()) == ["2", "3"]


@pytest.mark.deep
def test_a_run_with_moments_of_bytes_and_another_schedule(demo, tmp_path):
    flags = (
        "--config.optimization.steps=2",
        "--config.optimization.optimizer_type=adamw8bit",
        "--config.optimization.scheduler_type=step",
        "--config.optimization.warmup_steps=2",
    )
    train.main(config(demo, tmp_path / "out", *flags))
    records = json_lines(tmp_path / "out/metrics.jsonl")
    rates = [record["learning_rate"]["default"] for record in records]
    assert rates == pytest.approx([5e-3 / 2, 5e-4])
    assert export(tmp_path / "out", 2)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("training_strategy.name=text_to_video", "is 'text_to_video', expected 'justdubit'"),
        ("validation.enable_cross_attention_masking=False", "as training_strategy's"),
        ("data.preprocessed_data_root=", "expected --config.data.preprocessed_data_root=PATH"),
        ("lora.target_modules=('to_x',)", "config: lora.target_modules: 'to_x' matches no module"),
        ("mesh.data=3", "config: mesh.data x mesh.fsdp: 3 x 3 devices do not fit in the 8"),
        ("training_strategy.mask_config.mask_dir=nomasks", "nomasks/clips"),
    ],
)
def test_configs_that_are_refused(demo, tmp_path, flag, message):
    more = ["--config.mesh.fsdp=3"] if "mesh" in flag else []
    with pytest.raises(InputError, match=re.escape(message)):
        train.main(config(demo, tmp_path / "out", f"--config.{flag}", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "config: model.load_checkpoint: {folder}: no *step_*.safetensors"),
        (
            ("--config.lora.rank=4",),
            "config: model.load_checkpoint, for lora.rank and lora.target_modules: {file}: ",
        ),
        (
            ("--config.lora.target_modules=('to_q',)",),
            "config: model.load_checkpoint, for lora.rank and lora.target_modules: {file}: 0 miss",
        ),
    ],
)
def test_a_lora_file_that_does_not_fit_is_named_with_its_key(demo, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    file = RunFolder(demo / "run").lora(60)
    given = file if flags else tmp_path / "empty"
    flags += (f"--config.model.load_checkpoint={given}",)
    run = settings.read(config(demo, tmp_path / "out", *flags))
    source = open_checkpoint(run.model_path).config
    training = prepare_training(run, source, sharding.make_mesh(1, 1))
    message = message.format(folder=tmp_path / "empty", file=file)
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        first_state(training)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "configs/nowhere.py"),
        ("--config", "configs/dub.py", "--config.lora.rnk=3"),
        ("--config", "configs/dub.py", "--config.lora.rank=x"),
        ("--config", "configs/dub.py", "--steps=3"),
        ("--config", "configs/dub.py"),
        (),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(cli, "set_up_jax", lambda: None)  # it would last beyond the test
    with pytest.raises(SystemExit) as ended:
        cli.exiting(train.command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said


@pytest.mark.deep
def test_so_it_is_in_a_shell():
    done = run_module("justdubit_jax.train", "--config", "configs/nowhere.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
