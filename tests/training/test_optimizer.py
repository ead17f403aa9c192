import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.golden import golden_checkpoint
from helpers.training import META, TARGETS

from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora.dialects import COMFY, PEFT
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.training.optimizer import (
    OptimizerConfig,
    base_rates,
    curves,
    ema,
    make_optimizer,
)
from justdubit_jax.training.schedules import Schedule


def config(**changes) -> OptimizerConfig:
    values = {
        "kind": "adamw",
        "first_moment_dtype": "float32",
        "learning_rate": 1e-2,
        "groups": (),
        "schedule": Schedule("constant", 10),
        "max_grad_norm": 0.0,
    }
    return OptimizerConfig(**values | changes)


def test_first_matching_group_wins_for_every_block():
    names = {
        "blocks.audio.attn1.to_q.lora.A": [f"blocks.{i}.audio_attn1.to_q" for i in range(3)],
        "blocks.video.ff.lora.A": [f"blocks.{i}.ff" for i in range(3)],
    }
    groups = (("audio_attn", 1e-6), (r"blocks\.1\.", 5.0), ("audio", 7.0))
    rates = base_rates(names, 2e-4, groups)
    np.testing.assert_array_equal(rates["blocks.audio.attn1.to_q.lora.A"], np.float32([1e-6] * 3))
    # A pattern may name single blocks of a stacked parameter.
    np.testing.assert_array_equal(rates["blocks.video.ff.lora.A"], np.float32([2e-4, 5.0, 2e-4]))


def test_patterns_find_the_parameters_that_they_find_in_the_torch_trainer():
    checkpoint = TransformerConfig.from_metadata(golden_checkpoint("transformer_19b").config)
    adapter = lora.LoRAConfig(META["rank"], META["alpha"], 0.0, TARGETS)
    shapes = lora.split(lora.adapted_model(checkpoint, adapter)[0])[1]
    names = {path: PEFT.keys_of(path, leaf.shape) for path, leaf in shapes.items()}
    groups = tuple((group["pattern"], group["lr"]) for group in META["lr_groups"])
    rates = base_rates(names, META["lr"], groups)
    low = {
        key
        for path, leaf in shapes.items()
        for key, rate in zip(COMFY.keys_of(path, leaf.shape), rates[path], strict=True)
        if rate < META["lr"]
    }
    assert low == set(META["low_lr_params"])


def test_rates_for_the_log_are_the_schedules():
    schedule = Schedule("cosine", 10, {"eta_min": 3e-5}, warmup_steps=3)
    rates = curves(config(learning_rate=2e-4, groups=(("ff", 1e-6),), schedule=schedule))
    for name, base in (("default", 2e-4), ("ff", 1e-6)):
        want = [schedule(np.float32(base), step) for step in range(10)]
        np.testing.assert_allclose([rates[name](step) for step in range(10)], want, rtol=1e-6)


def adam_by_hand(p, gradients, rate, b1=0.9, b2=0.999, eps=1e-8, decay=1e-2):
    """torch.optim.AdamW, written out in float64."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - rate * decay * p
        p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 1e-6),  # float32, five steps
        ({"first_moment_dtype": "bfloat16"}, 2e-4),  # 2^-9 of a rate of 1e-2, and five steps
        ({"kind": "adamw8bit"}, 1e-3),  # five steps of 1e-2, each right to a few percent
    ],
)
def test_updates_are_torchs_adamw_per_block(changes, limit):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 2, 3, 4))
    rates = (1e-2, 3e-3)
    tx = make_optimizer(config(groups=(("1", rates[1]),), **changes), {"x": ["0", "1"]})
    params = {"x": jnp.asarray(start, jnp.float32)}
    state = tx.init(params)
    for i, gradient in enumerate(gradients):
        updates, state = tx.update({"x": jnp.asarray(gradient, jnp.float32)}, state, params, step=i)
        params = optax.apply_updates(params, updates)
    for block, rate in enumerate(rates):
        want = adam_by_hand(start[block], gradients[:, block], rate)
        np.testing.assert_allclose(params["x"][block], want, atol=limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_moment_is_kept_in_its_dtype(dtype):
    tx = make_optimizer(config(first_moment_dtype=dtype), {"x": ["x"]})
    adam = tx.init({"x": jnp.zeros((2, 3))})[1]
    assert (adam.mu["x"].dtype, adam.nu["x"].dtype) == (jnp.dtype(dtype), jnp.float32)


def test_clipping_is_by_the_global_norm():
    names = {"x": ["x"], "y": ["y"]}
    tx = make_optimizer(config(max_grad_norm=1.0), names)
    params = {"x": jnp.zeros((1, 1)), "y": jnp.zeros((1, 1))}
    gradients = {"x": jnp.full((1, 1), 3.0), "y": jnp.full((1, 1), 4.0)}
    _, state = tx.update(gradients, tx.init(params), params, step=0)
    moments = state[1].mu
    np.testing.assert_allclose([moments["x"][0, 0], moments["y"][0, 0]], [0.06, 0.08], rtol=1e-5)


def test_the_rate_is_the_steps_and_not_the_updates():
    schedule = Schedule("linear", 10, {"end_factor": 0.0})
    tx = make_optimizer(config(learning_rate=1.0, schedule=schedule), {"x": ["x"]})
    params = gradients = {"x": jnp.ones((1, 1))}
    state = tx.init(params)
    first, state = tx.update(gradients, state, params, step=0)
    # Steps 1 to 4 had no update: the fifth step's rate is half, the moments are of two updates.
    later, _ = jax.jit(tx.update)(gradients, state, params, step=5)
    np.testing.assert_allclose(later["x"], 0.5 * first["x"], rtol=1e-5)


def test_ema_is_a_running_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2, 3)).astype(np.float32)
    mean = {"x": jnp.asarray(values[0])}
    step = jax.jit(functools.partial(ema, decay=0.9))
    for value in values[1:]:
        mean = step(mean, {"x": value})
    weights = 0.1 * 0.9 ** np.arange(5, -1, -1)
    weights[0] = 0.9**5
    np.testing.assert_allclose(mean["x"], np.einsum("t,tij->ij", weights, values), rtol=1e-5)
    still = ema({"x": jnp.asarray(values[0])}, {"x": jnp.asarray(values[0])}, 0.999)
    np.testing.assert_array_equal(still["x"], values[0])
