import jax.numpy as jnp
import numpy as np
import optax

from justdubit_jax import optim


def test_first_matching_group_wins_for_every_block():
    names = {
        "blocks.audio.attn1.to_q.lora.A": [f"blocks.{i}.audio_attn1.to_q" for i in range(3)],
        "blocks.video.ff.lora.A": [f"blocks.{i}.ff" for i in range(3)],
    }
    groups = (("audio_attn", 1e-6), (r"blocks\.1\.", 5.0), ("audio", 7.0))
    rates = optim.base_rates(names, 2e-4, groups)
    np.testing.assert_array_equal(rates["blocks.audio.attn1.to_q.lora.A"], np.float32([1e-6] * 3))
    # A pattern may name single blocks of a stacked parameter.
    np.testing.assert_array_equal(rates["blocks.video.ff.lora.A"], np.float32([2e-4, 5.0, 2e-4]))


def test_linear_schedule_ends_where_it_says_and_stays():
    rate = optim.linear_schedule(10, 1.0, 0.1)
    np.testing.assert_allclose(
        [rate(2.0, i) for i in (0, 5, 10, 50)], [2.0, 1.1, 0.2, 0.2], rtol=1e-6
    )


def adam_by_hand(p, gradients, rate, b1=0.9, b2=0.999, eps=1e-8, decay=1e-2):
    """torch.optim.AdamW, written out in float64."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - rate * decay * p
        p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


def test_updates_are_torchs_adamw_per_block():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 2, 3, 4))
    rates = {"x": np.array([1e-2, 3e-3], np.float32)}
    tx = optim.make_optimizer(rates, optim.linear_schedule(10, 1.0, 1.0), max_grad_norm=0)
    params = {"x": jnp.asarray(start, jnp.float32)}
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update({"x": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    for block, rate in enumerate(rates["x"]):
        want = adam_by_hand(start[block], gradients[:, block], rate)
        np.testing.assert_allclose(params["x"][block], want, atol=1e-6)  # float32, five steps


def test_clipping_is_by_the_global_norm():
    rates = {"x": np.float32([1.0]), "y": np.float32([1.0])}
    tx = optim.make_optimizer(rates, optim.linear_schedule(10), max_grad_norm=1.0)
    params = {"x": jnp.zeros((1, 1)), "y": jnp.zeros((1, 1))}
    gradients = {"x": jnp.full((1, 1), 3.0), "y": jnp.full((1, 1), 4.0)}
    _, state = tx.update(gradients, tx.init(params), params)
    moments = state[1].mu
    np.testing.assert_allclose([moments["x"][0, 0], moments["y"][0, 0]], [0.06, 0.08], rtol=1e-5)
