"""SIGTERM: what is done is saved, and the same command continues."""

import os
import signal

import pytest
from helpers.toy import EXTRAS, FOUR, config, same

from justdubit_jax import train
from justdubit_jax.runs import metrics
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.runs.state import Checkpoints


def test_sigterm_saves_and_the_same_command_continues(demo, four_steps, tmp_path, monkeypatch):
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
    assert Checkpoints(tmp_path / "out/state", read_only=True).steps == [2, 3]
    assert RunFolder(tmp_path / "out").lora(3).is_file()
    train.main(run)
    for mean in (False, True):
        assert same(
            RunFolder(tmp_path / "out").lora(4, mean),
            RunFolder(four_steps).lora(4, mean),
        )


def test_sigterm_before_the_first_step_exits_with_0(demo, tmp_path, monkeypatch):
    def load(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "load_base", load)
    with pytest.raises(SystemExit) as ended:
        train.main(config(demo, tmp_path / "out", *FOUR))
    assert ended.value.code == 0
