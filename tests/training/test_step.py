import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.toy import one_step

from justdubit_jax.data.batch import MicroBatches, StreamTokens
from justdubit_jax.devices import sharding
from justdubit_jax.training import step
from justdubit_jax.training.objective import Draw, Objective, SigmaSampling
from justdubit_jax.training.step import State, StepConfig, make_step


def fixed_draw(self, key, batch, frames):
    """Noise that depends on the sample alone."""
    size = len(batch.video.target)
    video, audio = (jnp.sin(37 * stream.target) for stream in (batch.video, batch.audio))
    return Draw(jnp.full(size, 0.7), video, audio, jnp.zeros(size, bool))


class Noise(Objective):
    """An objective that is nothing but what it draws."""

    def draw(self, key, batch, frames):
        return jax.random.normal(key)

    def loss(self, model, batch, draws, grid, prepare_block=None):
        return model["a"] * draws, {"loss": draws}


class Squares(Objective):
    """An objective without noise, for a model of one number a channel."""

    def draw(self, key, batch, frames):
        return None

    def loss(self, model, batch, draws, grid, prepare_block=None):
        loss = ((model["a"][None, None] * batch.video.target) ** 2).mean()
        return loss, {"loss": loss}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_one_large_batch(monkeypatch, parts):
    monkeypatch.setattr(step.lora, "merge", lambda graphdef, adapters, frozen: adapters)
    target = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)
    rate, a = 0.1, jnp.arange(1.0, 6.0)
    state, metrics = one_update(Squares, optax.sgd(rate), {"a": a}, target, parts)
    want = 2 * a * (target**2).mean((0, 1)) / 5
    np.testing.assert_allclose(state.adapters["a"], a - rate * want, rtol=1e-6)  # float32 sums
    assert metrics["loss"] == pytest.approx(((np.array(a) * target) ** 2).mean(), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(jnp.linalg.norm(want)), rel=1e-6)


def one_update(objective, optimizer, adapters, target, parts):
    """The state and metrics after a step of that many micro-batches of a target [b, t, c]."""
    mesh = sharding.make_mesh(1, 1)
    everywhere = sharding.replicated(mesh)
    optimizer = optax.with_extra_args_support(optimizer)
    made = objective(SigmaSampling("uniform"), 0.0, None, True, "own", jnp.float32)
    place = State(dict.fromkeys(adapters, everywhere), everywhere, everywhere)
    graphdef = nnx.split(nnx.Dict())[0]
    run = make_step(StepConfig(0, 0.0, 0.0), made, graphdef, optimizer, mesh, place)
    target = jnp.asarray(target).reshape(parts, -1, *target.shape[1:])
    stream = StreamTokens(target, *(jnp.zeros((*target.shape[:2], 1, 1)) for _ in range(3)))
    own = {name: jnp.array(x) for name, x in adapters.items()}  # given away to the step
    state = State(own, optimizer.init(own), jnp.int32(0))
    return run(state, None, MicroBatches(stream, stream, None), (1, 1, 1))


class Spread(Noise):
    """Noise whose second moment is told too."""

    def loss(self, model, batch, draws, grid, prepare_block=None):
        return model["a"].sum() * draws, {"loss": draws, "square": draws**2}


def test_every_micro_batch_draws_other_noise(monkeypatch):
    monkeypatch.setattr(step.lora, "merge", lambda graphdef, adapters, frozen: adapters)
    target = np.zeros((8, 3, 5), np.float32)
    _, metrics = one_update(Spread, optax.sgd(0.1), {"a": jnp.ones(5)}, target, 4)
    assert float(metrics["square"]) > 1.01 * float(metrics["loss"]) ** 2  # equal draws: equal


@pytest.mark.deep
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


def test_every_step_and_seed_draws_other_noise(monkeypatch):
    monkeypatch.setattr(step.lora, "merge", lambda graphdef, adapters, frozen: adapters)
    mesh = sharding.make_mesh(1, 1)
    everywhere, sgd = sharding.replicated(mesh), optax.with_extra_args_support(optax.sgd(0.1))
    objective = Noise(SigmaSampling("uniform"), 0.0, None, True, "own", jnp.float32)
    graphdef = nnx.split(nnx.Dict())[0]
    nothing = StreamTokens(*(jnp.zeros((2, 1, 1, 1)) for _ in range(4)))

    def drawn(seed: int) -> list[float]:
        place = State({"a": everywhere}, everywhere, everywhere)
        config = StepConfig(seed, 0.0, 0.0)
        run = make_step(config, objective, graphdef, sgd, mesh, place)
        adapters = {"a": jnp.float32(1)}
        state, means = State(adapters, sgd.init(adapters), jnp.int32(0)), []
        for _ in range(3):
            state, metrics = run(state, None, MicroBatches(nothing, nothing, None), (1, 1, 1))
            means.append(float(metrics["loss"]))
        return means

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again and len({*first, *other}) == 6
