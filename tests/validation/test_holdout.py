"""What is kept of held-out losses, with a loss that tells the adapters it was given."""

from unittest.mock import Mock

import numpy as np
import pytest
from helpers.lines import json_lines

from justdubit_jax.lora.adapters import Weights
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.output import RunFolder, read_best
from justdubit_jax.training.prepare import Training
from justdubit_jax.training.settings import Settings
from justdubit_jax.validation import holdout
from justdubit_jax.validation.holdout import Holdout


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def started(folder, monkeypatch):
    """A Holdout that continues from a step, its log, and the losses that were measured."""
    measured = []

    class Loss:
        def __init__(self, *parts: object):
            pass

        def mean(self, weights: Weights, groups: object) -> dict[str, float]:
            measured.append(float(weights.adapters["x"].item(0)))
            return {"loss": measured[-1]}

    monkeypatch.setattr(holdout, "FixedLoss", Loss)
    monkeypatch.setattr(holdout, "group_by_shape", lambda samples: [])

    def start(first_step: int):
        training = Mock(spec=Training, run=Mock(spec=Settings, output_dir=folder.path))
        for part in ("objective", "graphdef", "layout", "mesh"):
            setattr(training, part, None)
        log = Mock(spec=Log)
        return Holdout(training, [], first_step, [log]), log, measured

    return start


def weights(loss: float) -> Weights:
    return Weights({"x": np.full(1, loss)}, {})


def test_the_loss_of_the_adapters_is_written_once_a_step(folder, started):
    held, log, measured = started(0)
    assert held.measure(0, weights(3.0)) == {"step": 0, "loss": 3.0}
    held.measure(2, weights(1.0))
    assert held.measure(2, weights(9.0))["loss"] == 1.0 and measured == [3.0, 1.0]
    assert json_lines(folder.validation) == [{"step": 0, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    log.scalars.assert_called_with(2, {"held_out": {"loss": 1.0}})


def test_the_best_is_the_least_and_what_lies_ahead_is_forgotten(folder, started):
    held, _, _ = started(0)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        held.name_best(held.measure(step, weights(loss)), folder.lora(step))
    best = read_best(folder)
    assert best is not None and (best.step, best.loss) == (2, 1.0)
    again, *_ = started(1)
    assert read_best(folder) is None
    assert again.measure(1, weights(7.0))["loss"] == 3.0
    assert again.measure(2, weights(5.0))["loss"] == 5.0
    assert [line["loss"] for line in json_lines(folder.validation)] == [3.0, 5.0]
