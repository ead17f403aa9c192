"""Adam with moments of bytes against the same in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from justdubit_jax.devices import sharding
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training.adam8bit import (
    FIRST,
    SECOND,
    block_size,
    decode,
    encode,
    scale_by_adam8bit,
)
from justdubit_jax.training.prepare import state_shardings
from justdubit_jax.training.step import State

ADAM = (0.9, 0.999, 1e-8)


def test_blocks_divide_the_axis():
    sizes = {1: 1, 7: 7, 128: 128, 257: 1, 300: 150, 4096: 256}
    assert {n: block_size(n) for n in sizes} == sizes


def spread_values(code):
    """Two rows of two blocks, values from the block's largest down to a millionth of it."""
    rng = np.random.default_rng(0)
    values = 10.0 ** rng.uniform(-6, 0, (2, 512)) * 10.0 ** np.repeat([3, -9], 256)
    return jnp.float32(values if code is SECOND else values * rng.choice([-1, 1], values.shape))


@pytest.mark.parametrize("code", [FIRST, SECOND])
def test_rounding_keeps_the_mean_and_is_within_a_code(code):
    values = spread_values(code)
    draws = jax.random.uniform(jax.random.key(0), (2000, *values.shape))
    codes, scales = jax.vmap(functools.partial(encode, code, values))(draws)
    assert codes.dtype == code.dtype and scales.shape == (2000, 2, 2)
    decoded = np.asarray(jax.vmap(functools.partial(decode, code))(codes, scales), np.float64)
    scale = np.repeat(scales[0], 256, -1)
    # Between two codes: their distance, at the larger one.
    gap = code.power * (np.abs(values) / scale) ** (1 - 1 / code.power) / code.top
    gap = scale * (gap * 2 + code.top**-code.power)
    assert (np.abs(decoded - values[None]) <= gap[None]).all()
    # Five deviations of the mean of 2000 draws, each at most half a gap off.
    assert (np.abs(decoded.mean(0) - values) <= 5 * gap / 2 / np.sqrt(2000)).all()


@pytest.mark.parametrize("code", [FIRST, SECOND])
def test_zeros_and_the_largest_of_a_block_are_exact(code):
    values = jnp.zeros((2, 256)).at[0, :2].set(jnp.array([0.1, 0.3]))
    for draw in (0.0, 0.5, 1 - 2**-24):
        got = decode(code, *encode(code, values, jnp.full(values.shape, draw)))
        assert got[0, 1] == np.float32(0.3)
        np.testing.assert_array_equal(got[values == 0], 0)


def noise(steps, shape, sizes=1.0):
    values = jax.random.normal(jax.random.key(0), (steps, *shape))
    return jnp.broadcast_to(sizes, values.shape) * values


def run(tx, gradients, params):
    """Updates of every step."""

    def step(state, gradient):
        update, state = tx.update({"x": gradient}, state, params)
        return state, update["x"]

    return jax.lax.scan(step, tx.init(params), gradients)


def test_updates_under_noise_are_adams_on_the_whole():
    """A thousand steps: rounding neither drifts nor stands still."""
    sizes = jnp.exp(jax.random.normal(jax.random.key(1), (4, 256)))
    params = {"x": jnp.zeros((4, 256))}
    gradients = noise(1000, (4, 256), sizes).at[:100].multiply(10)  # large at first
    _, got = run(scale_by_adam8bit(*ADAM), gradients, params)
    _, want = run(optax.scale_by_adam(*ADAM), gradients, params)
    late_got, late_want = np.asarray(got[-100:]), np.asarray(want[-100:])
    size = np.sqrt((late_got**2).mean() / (late_want**2).mean())
    assert 0.95 < size < 1.01, size  # the denominators are a little larger
    together = np.corrcoef(late_got.ravel(), late_want.ravel())[0, 1]
    assert together > 0.98, together


def test_a_gradient_that_ends_leaves_no_drift():
    """To the nearest code its first moment would stand still for ever."""
    params = {"x": jnp.zeros((1, 256))}
    gradients = noise(400, (1, 256)).at[50:, :, :128].set(0)
    _, got = run(scale_by_adam8bit(*ADAM), gradients, params)
    np.testing.assert_array_equal(got[-100:, :, :128], 0)


def test_small_gradients_beside_a_large_one_make_no_long_steps():
    gradients = noise(300, (1, 256), jnp.full((1, 256), 1e-7).at[0, 0].set(1.0))
    _, got = run(scale_by_adam8bit(*ADAM), gradients, {"x": jnp.zeros((1, 256))})
    assert np.abs(got).max() <= 3


def test_without_gradients_nothing_moves():
    params = {"x": jnp.ones((2, 256))}
    state, got = run(scale_by_adam8bit(*ADAM), jnp.zeros((3, 2, 256)), params)
    np.testing.assert_array_equal(got, 0)
    for leaf in jax.tree.leaves(state._replace(count=0)):
        np.testing.assert_array_equal(leaf, 0)


def test_a_regression_ends_where_float32_does():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(256, 64)).astype(np.float32)
    targets = inputs @ rng.normal(size=(64, 32)) + 0.1 * rng.normal(size=(256, 32))
    inputs, targets = jnp.float32(inputs), jnp.float32(targets)
    start = {name: jnp.float32(rng.normal(size=(n, 32)) / 8) for name, n in (("a", 64), ("b", 32))}

    def loss(params, rows):
        return jnp.mean((inputs[rows] @ params["a"] @ params["b"] - targets[rows]) ** 2)

    def final_loss(adam):
        tx = optax.chain(adam, optax.scale(-3e-3))

        def step(carry, rows):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
            return (optax.apply_updates(params, updates), state), None

        rows = jax.random.randint(jax.random.key(0), (1500, 32), 0, 256)
        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), rows)
        return float(loss(params, slice(None)))

    exact, bytes_ = final_loss(optax.scale_by_adam(*ADAM)), final_loss(scale_by_adam8bit(*ADAM))
    assert abs(bytes_ / exact - 1) < 0.02


def test_the_state_is_about_a_quarter_of_adams():
    params = {"a": jnp.zeros((2, 128, 4096)), "b": jnp.zeros((2, 4096, 128))}

    def size(tx):
        return sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(tx.init, params))
        )

    assert 0.25 < size(scale_by_adam8bit(*ADAM)) / size(optax.scale_by_adam(*ADAM)) < 0.27


def test_the_state_comes_back_from_disk(tmp_path):
    params = {"x": jnp.zeros((2, 3, 300))}
    moments, _ = run(scale_by_adam8bit(*ADAM), noise(3, (2, 3, 300)), params)
    state = State(params, moments, jnp.int32(3))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    checkpoints.wait()
    restored = checkpoints.restore(3, jax.tree.map(jnp.zeros_like, state))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_the_state_lies_where_its_adapters_do():
    mesh = sharding.make_mesh(1, 8)
    tx = optax.with_extra_args_support(scale_by_adam8bit(*ADAM))
    # Split along the last axis, with scales that split and with six that do not; along another.
    shapes = {"even.A": (125, 4096), "odd.A": (257, 1032), "wide.B": (4096, 128)}
    params = {path: jnp.ones(shape) for path, shape in shapes.items()}
    place = state_shardings(params, tx, mesh, mean=False)
    specs = {path: tuple(s.spec) for path, s in place.moments.second.codes.items()}
    assert specs == {"even.A": (None, "fsdp"), "odd.A": (None, "fsdp"), "wide.B": ("fsdp",)}
    scales = {path: tuple(s.spec) for path, s in place.moments.first.scales.items()}
    assert scales == {"even.A": (None, "fsdp"), "odd.A": (None, None), "wide.B": ("fsdp",)}

    gradients = {path: noise(1, shape)[0] for path, shape in shapes.items()}
    want = tx.update(gradients, tx.init(params))
    spread = jax.jit(
        tx.update,
        in_shardings=(place.adapters, place.moments),
        out_shardings=(place.adapters, place.moments),
    )
    got = spread(*jax.device_put((gradients, tx.init(params)), (place.adapters, place.moments)))
    for (path, mine), wanted in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        tolerance = 1 if mine.dtype in (jnp.int8, jnp.uint8) else 0  # a draw on the border
        np.testing.assert_allclose(
            np.float32(mine), np.float32(wanted), atol=tolerance, rtol=1e-5, err_msg=str(path)
        )
