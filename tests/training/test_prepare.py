"""What a config's values turn into before the first step."""

import itertools

import jax
import numpy as np
from helpers.toy import config

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import first_state, make_batches, prepare_training
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
