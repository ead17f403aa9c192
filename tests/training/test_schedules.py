"""Torch's curves: values that torch 2.13's schedulers gave, and closed forms in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from justdubit_jax.errors import InputError
from justdubit_jax.training.schedules import KINDS, Schedule

# (kind, parameters, steps, step): torch's rates for the base rates 2e-4 and 1e-6. A floor above
# the base rate (eta_min is 5e-5 with restarts) makes the rate grow.
TORCH = [
    ("linear", {}, 2000, 999, (1.1009e-4, 5.5045e-7)),
    ("linear", {"start_factor": 0.25, "end_factor": 1.0}, 10, 3, (9.5e-5, 4.75e-7)),
    ("cosine", {}, 100, 99, (4.934396342684008e-08, 2.4671981713420007e-10)),
    ("cosine", {}, 2000, 1999, (1.233700296476843e-10, 6.168501482384246e-13)),
    ("cosine", {"eta_min": 3e-5}, 10, 7, (6.50382535551398e-05, 2.402288615824086e-05)),
    ("cosine_with_restarts", {}, 2000, 999, (5.000148043578972e-05, 4.9999516390975364e-05)),
    ("cosine_with_restarts", {}, 2000, 1000, (2e-4, 1e-6)),
    ("cosine_with_restarts", {}, 10, 3, (1.25e-4, 2.55e-5)),
    (
        "cosine_with_restarts",
        {"T_0": 3, "T_mult": 2},
        100,
        50,
        (0.00019601975971213293, 2.300211827369903e-06),
    ),
    ("cosine_with_restarts", {"T_0": 3, "T_mult": 2}, 100, 9, (2e-4, 1e-6)),
    (
        "cosine_with_restarts",
        {"T_0": 2, "T_mult": 3, "eta_min": 0.0},
        2000,
        1999,
        (8.008553676426467e-06, 4.004276838213233e-08),
    ),
    ("polynomial", {}, 100, 99, (2e-6, 1e-8)),
    ("polynomial", {"power": 2.0}, 10, 7, (1.8e-5, 9e-8)),
    ("polynomial", {"power": 0.5}, 10, 9, (6.32455532033676e-05, 3.162277660168379e-07)),
    ("step", {}, 2000, 999, (2e-4, 1e-6)),
    ("step", {}, 2000, 1000, (2e-5, 1e-7)),
    ("step", {"step_size": 3, "gamma": 0.5}, 10, 9, (2.5e-5, 1.25e-7)),
]


@pytest.mark.parametrize(("kind", "params", "steps", "step", "want"), TORCH)
def test_rates_that_torch_gave(kind, params, steps, step, want):
    rates = Schedule(kind, steps, params)(np.float32([2e-4, 1e-6]), step)
    np.testing.assert_allclose(rates, want, rtol=2e-6)  # float32


def cosine(base, t, length, floor):
    return floor + (base - floor) * (1 + math.cos(math.pi * t / length)) / 2


def restarted(base, t, length, growth, floor):
    while t >= length:
        t, length = t - length, length * growth
    return cosine(base, t, length, floor)


CLOSED_FORMS = {
    "constant": ({}, lambda base, t, n: base),
    "linear": ({"end_factor": 0.2}, lambda base, t, n: base * (1 - 0.8 * t / n)),
    "cosine": ({"eta_min": 1e-5}, lambda base, t, n: cosine(base, t, n, 1e-5)),
    "cosine_with_restarts": (
        {"T_0": 5, "T_mult": 2},
        lambda base, t, n: restarted(base, t, 5, 2, 5e-5),
    ),
    "polynomial": ({"power": 3.0}, lambda base, t, n: base * (1 - t / n) ** 3),
    "step": ({"step_size": 7}, lambda base, t, n: base * 10.0 ** -(t // 7)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [2e-4, 1e-6])
def test_whole_curves(kind, base):
    params, rate = CLOSED_FORMS[kind]
    got = Schedule(kind, 50, params)(np.float32(base), jnp.arange(50))
    np.testing.assert_allclose(got, [rate(base, t, 50) for t in range(50)], rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shortest_runs_have_a_rate(kind):
    for steps in (1, 2, 3):
        assert Schedule(kind, steps)(2e-4, 0) == np.float32(2e-4)


def test_rates_stay_after_the_end():
    rate = Schedule("linear", 10)
    np.testing.assert_allclose([rate(2.0, i) for i in (0, 5, 10, 50)], [2, 1.1, 0.2, 0.2], 1e-6)
    assert Schedule("polynomial", 10)(2.0, 50) == 0


def test_warmup_grows_to_the_curve():
    plain, warm = Schedule("cosine", 20), Schedule("cosine", 20, warmup_steps=4)
    steps = jnp.arange(20)
    factor = np.minimum(1, np.arange(1, 21) / 4)
    np.testing.assert_allclose(warm(3.0, steps), plain(3.0, steps) * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("linear", {"eta_min": 0.1}, "unknown 'eta_min'; linear takes start_factor, end_factor"),
        ("constant", {"power": 1.0}, "unknown 'power'; constant takes none"),
        ("linear", {"end_factor": 1.5}, "end_factor is 1.5, expected 0 to 1"),
        ("cosine", {"eta_min": -1e-5}, "eta_min is -1e-05, expected at least 0"),
        ("polynomial", {"power": math.inf}, "power is inf, expected at least 0"),
        ("step", {"gamma": math.nan}, "gamma is nan"),
        ("step", {"step_size": 0.0}, "step_size is 0.0, expected a whole number above 0"),
        ("cosine_with_restarts", {"T_0": 0}, "T_0 is 0, expected a whole number above 0"),
        ("cosine_with_restarts", {"T_mult": 1.5}, "T_mult is 1.5, expected a whole number"),
        ("cosine_with_restarts", {"T_0": math.inf}, "T_0 is inf, expected a whole number"),
    ],
)
def test_parameters_that_are_refused(kind, params, message):
    with pytest.raises(InputError, match=message):
        Schedule(kind, 10, params)
