"""What the tests of planning share: the toy's compiled step, and the text of a small program."""

from pathlib import Path

import pytest
from helpers.toy import config

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.planning.memory import Plan, Program, compile_step
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training
from justdubit_jax.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="session")
def toy(demo, tmp_path_factory) -> Program:
    run = settings.read(config(demo, tmp_path_factory.mktemp("plan")))
    source = open_checkpoint(run.model_path)
    training = prepare_training(run, source.config, sharding.make_mesh(*run.mesh))
    return compile_step(training, train.read_data(run)[0][0].shape)


@pytest.fixture(scope="session")
def toy_plan(toy) -> Plan:
    return toy.plan


@pytest.fixture(scope="session")
def text_of_two_cards() -> str:
    """See test_kernels.py."""
    return Path(__file__).with_name("two_cards.hlo.txt").read_text()
