"""The held-out loss: which sigmas, noises and first frames it asks the objective for.

The objective answers with what it was given; the real one's numbers are tested with the
golden training.
"""

from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from justdubit_jax.data.batch import Sample, SampleShape, StreamShape, StreamTokens
from justdubit_jax.data.samples import SampleFiles, ShapeGroup
from justdubit_jax.devices import sharding
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.models.tokens import Layout
from justdubit_jax.training.objective import Draw, Errors, Objective, SigmaSampling
from justdubit_jax.validation import fixed_loss
from justdubit_jax.validation.fixed_loss import SIGMAS, FixedLoss


class Telling(Objective):
    """An objective whose errors are what it was given, and its terms those errors."""

    def draw(self, key: Any, batch: Any, frames: int) -> Draw:
        noise = jax.random.normal(key, batch.video.target.shape)
        first = jnp.full(batch.size, self.first_frame_p > 0)
        return Draw(jnp.full(batch.size, 7.0), noise, batch.audio.target, first)

    def errors(self, model: Any, batch: Any, draws: Draw, grid: Any) -> Errors:
        noise = draws.video_noise.at[:, 0, 0].set(draws.sigma)
        first = jnp.tile(draws.first_frame[:, None].astype(jnp.float32), (1, 4))
        return Errors(noise, draws.audio_noise, first)

    def terms(self, errors: Errors, face_mask: Any) -> dict[str, Any]:
        return {"sigma": errors.video[0, 0, 0], "noise": errors.video[0, 1, 0]}

    def sides(self, errors: Errors, face_mask: Any) -> dict[str, Any]:
        return {"first_frame": errors.counts.mean(), "sample": errors.audio[0, 0, 0]}


@pytest.fixture
def mean(monkeypatch):
    """The terms over samples of those names; the audio of a sample is the length of its name."""

    def tokens(value: float) -> StreamTokens:
        ones = np.full((4, 2), value, np.float32)
        return StreamTokens(ones, ones, np.zeros((1, 8, 2), np.float32), ones)

    def read(files: SampleFiles, layout: Any) -> Sample:
        return Sample(tokens(0), tokens(len(files.name)), np.zeros(4, np.float32))

    monkeypatch.setattr(fixed_loss.lora, "merge", lambda graphdef, *weights: None)
    monkeypatch.setattr(fixed_loss, "read_sample", read)
    objective = Telling(SigmaSampling("uniform"), 1.0, None, True, "own", jnp.float32)
    graphdef, layout = Mock(spec=nnx.GraphDef), Mock(spec=Layout)
    loss = FixedLoss(objective, graphdef, layout, sharding.make_mesh(1, 1))
    stream = StreamShape(4, 4, 2, 1, 4, 2)

    def run(*names: str) -> dict[str, float]:
        files = tuple(SampleFiles(name, {}) for name in names)
        group = ShapeGroup(SampleShape((1, 2, 2), stream, stream, has_mask=True), files)
        return loss.mean(Weights({}, {}), [group])

    return run


def test_every_sigma_is_looked_at_once(mean):
    assert mean("a")["sigma"] == pytest.approx(np.mean(SIGMAS))


def test_the_first_frame_is_never_given(mean):
    assert mean("a", "bb")["first_frame"] == 0


def test_all_samples_count_alike(mean):
    assert mean("a", "bb", "cccccc")["sample"] == pytest.approx(3)


def test_each_sample_has_a_noise_of_its_name_the_same_on_every_run(mean):
    one, other = mean("a")["noise"], mean("bb")["noise"]
    assert one != other and mean("a")["noise"] == one
    assert mean("bb", "a")["noise"] == pytest.approx((one + other) / 2)
