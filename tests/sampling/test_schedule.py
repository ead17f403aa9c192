"""The sigma schedule and the steps along it, against the golden tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import error, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.sampling.schedule import euler_step, sigmas, to_denoised, to_velocity

GOLDEN, META = load_golden("tokens")


@pytest.mark.parametrize("steps", META["shapes"]["steps"])
def test_sigmas(steps):
    tokens = [int(np.prod(shape[2:])) for shape in META["shapes"]["latents"]]
    for name, options in {
        "default_tokens": (),
        **{f"latent{i}": (count,) for i, count in enumerate(tokens)},
    }.items():
        got = sigmas(steps, *options)
        assert got.dtype == np.float32
        assert error(got, GOLDEN[f"expect.sigmas.{name}.steps{steps}"]) < 1e-6  # a few ulp


def test_sigmas_fall_from_one_to_zero():
    for steps in (1, 2, 3, 7, 100):
        for tokens in (6, 4096, 30_000, 10**6):  # the last: all levels round to 1
            levels = sigmas(steps, tokens)
            assert len(levels) == steps + 1 and np.isfinite(levels).all()
            assert levels[0] == pytest.approx(1) and levels[-1] == 0
            assert (np.diff(levels) <= 0).all() and levels[-2] > 0.09
    with pytest.raises(InputError, match="steps: got 0"):
        sigmas(0)


def test_steps_equal_the_reference():
    x, velocity = (jnp.asarray(GOLDEN[f"input.guide.{name}"]) for name in ("sample", "cond"))
    sigma, levels = META["guidance"]["velocity_sigma"], jnp.asarray(sigmas(8))
    got = {
        "to_denoised": to_denoised(x, velocity, sigma),
        "to_velocity": to_velocity(x, velocity, sigma),
    }
    for i in META["guidance"]["euler_steps"]:
        got[f"euler.step{i}"] = euler_step(x, velocity, levels[i], levels[i + 1])
    for name, value in got.items():
        assert error(value, GOLDEN[f"expect.{name}"]) < 1e-6, name  # float32 rounding
