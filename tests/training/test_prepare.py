"""What a config's values turn into before the first step."""

import itertools

import jax
import numpy as np
import pytest
from helpers.toy import config
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.errors import InputError
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.files import newest_lora
from justdubit_jax.lora.record import LoRARecord
from justdubit_jax.runs.output import lora_record
from justdubit_jax.training import prepare, settings
from justdubit_jax.training.optimizer import make_optimizer
from justdubit_jax.training.prepare import (
    check_start,
    first_state,
    make_batches,
    prepare_training,
)
from justdubit_jax.training.step import StepConfig, make_step
from justdubit_jax.weights.checkpoint import checkpoint_config


def prepared(demo, tmp_path, *more: str):
    run = settings.read(config(demo, tmp_path, *more))
    return prepare_training(run, checkpoint_config(run.model_path), sharding.make_mesh(1, 1))


def test_the_seed_decides_the_first_adapters_and_the_order_of_samples(demo, tmp_path):
    def start(seed: int):
        training = prepared(demo, tmp_path, f"--config.seed={seed}")
        batches = make_batches(training, train.read_data(training.run)[0])
        names = [files[0].name for _, files, _ in itertools.islice(batches, 12)]
        return {k: np.asarray(x) for k, x in first_state(training).adapters.items()}, names

    first, again, other = start(1), start(1), start(2)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert other[1] != first[1]
    assert all((other[0][k] != x).any() for k, x in first[0].items() if k.endswith(".A"))


def test_the_objective_is_what_the_config_says(demo, tmp_path):
    published = prepared(demo, tmp_path).objective
    assert (published.cross_timestep, published.isolate) == ("own", True)
    strategy = "--config.training_strategy"
    other = prepared(
        demo,
        tmp_path,
        "--config.model.cross_timestep=other",
        f"{strategy}.enable_cross_attention_masking=False",
        "--config.validation.enable_cross_attention_masking=False",
        f"{strategy}.first_frame_conditioning_p=0.25",
        f"{strategy}.mask_config.use_masked_loss=False",
    ).objective
    assert (other.cross_timestep, other.isolate) == ("other", False)
    assert (other.first_frame_p, other.mask_loss) == (0.25, None)
    assert published.first_frame_p == 0.1 and published.mask_loss is not None


def test_the_step_has_the_runs_seed_dropout_and_running_mean(demo, tmp_path, monkeypatch):
    made = []

    def recorded(step, *parts):
        made.append(step)
        return make_step(step, *parts)

    monkeypatch.setattr(prepare, "make_step", recorded)
    flags = "--config.lora.dropout=0.25", "--config.optimization.ema_decay=0.5"
    training = prepared(demo, tmp_path, *flags, "--config.seed=7")
    prepare.recomputing(training, "full")
    assert made == [StepConfig(seed=7, dropout=0.25, ema_decay=0.5)] * 2


def test_the_record_of_a_lora_says_its_rank_alpha_and_rule(demo, tmp_path):
    flags = "--config.lora.rank=3", "--config.lora.alpha=5", "--config.model.cross_timestep=other"
    assert lora_record(prepared(demo, tmp_path, *flags)) == LoRARecord(3, 5.0, "other")


def test_rates_are_chosen_by_the_names_of_the_torch_trainer(demo, tmp_path, monkeypatch):
    given = {}

    def recorded(config, names):
        given.update(names)
        return make_optimizer(config, names)

    monkeypatch.setattr(prepare, "make_optimizer", recorded)
    training = prepared(demo, tmp_path)
    assert list(given["blocks.video.attn1.to_q.lora.A"]) == [
        f"base_model.model.transformer_blocks.{block}.attn1.to_q.lora_A.default.weight"
        for block in range(training.config.layers)
    ]
    assert given.keys() == training.abstract.adapters.keys()


def test_a_rate_group_that_finds_nothing_is_refused_with_what_is_near(demo, tmp_path):
    def groups(pattern: str):
        return f"--config.optimization.learning_rate_groups=(('{pattern}', 1e-6),)"

    with pytest.raises(InputError, match=r"'audio_atn1' is found in no name .* mean 'audio_attn1'"):
        prepared(demo, tmp_path, groups("audio_atn1"))
    # One of the model that is not adapted here is no mistake.
    prepared(demo, tmp_path, groups("audio_ff"), "--config.lora.target_modules=('to_k',)")
    prepared(demo, tmp_path, groups("lora_A"))


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"alpha": "2"}, "has alpha 2, lora.alpha is 8: its effect would be 4 times as strong"),
        ({"cross_timestep": "other"}, "cross_timestep 'other', this run has 'own'"),
        ({}, None),  # of another trainer, which says neither
        ({"alpha": "8", "cross_timestep": "own"}, None),
    ],
)
def test_a_lora_of_another_scale_or_rule_is_not_started_from(demo, tmp_path, metadata, message):
    """As report 07 has it."""
    tensors = load_file(demo / "run/checkpoints/lora_weights_step_00060.safetensors")
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata)
    training = prepared(demo, tmp_path, f"--config.model.load_checkpoint={path}")
    if message is None:
        check_start(training)
        return
    with pytest.raises(InputError, match=message):
        check_start(training)


def test_a_training_starts_from_the_lora_file_that_is_given(demo, tmp_path):
    path = demo / "run/checkpoints/lora_weights_step_00060.safetensors"
    training = prepared(demo, tmp_path, f"--config.model.load_checkpoint={path}")
    got = lora_files.file_tensors(jax.device_get(first_state(training).adapters))
    want = load_file(path)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(got[name], tensor.astype(np.float32))


def test_a_folder_to_start_from_has_no_files_of_runs_that_were_moved_aside(demo, tmp_path):
    source = demo / "run/checkpoints/lora_weights_step_00060.safetensors"
    tensors = load_file(source)
    with safe_open(source, framework="numpy") as file:
        metadata = file.metadata()
    for place, step in (("checkpoints", 20), ("previous/1/checkpoints", 40)):
        (tmp_path / place).mkdir(parents=True)
        save_file(tensors, tmp_path / place / f"lora_weights_step_{step:05d}.safetensors", metadata)
    assert newest_lora(tmp_path).name == "lora_weights_step_00020.safetensors"
    assert newest_lora(tmp_path / "previous/1").name == "lora_weights_step_00040.safetensors"
