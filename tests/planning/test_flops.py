"""The operation count: of small functions, and of the 19B step against a budget made by hand."""

import functools
import json
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.commands import REPO

from justdubit_jax import cli
from justdubit_jax.devices import sharding
from justdubit_jax.planning.flops import count, peak_flops
from justdubit_jax.planning.memory import sample_flops, shape_of_size
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training

CONFIG = Path(__file__).parents[1] / "ltx-2-19b-dev.config.json"


def test_products_loops_and_branches_are_counted():
    x, w = jnp.zeros((5, 3)), jnp.zeros((3, 7))
    assert count(lambda x, w: x @ w, x, w) == 2 * 5 * 3 * 7
    assert count(jax.jit(lambda x, w: jnp.einsum("bti,io->bto", x, w)), x[None], w) == 2 * 5 * 3 * 7
    square = jnp.zeros((3, 3))

    def four_times(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0]

    assert count(four_times, x, square) == 4 * 2 * 5 * 3 * 3
    assert count(lambda x, w: jax.lax.cond(True, lambda: x @ w, lambda: x), x, square) == 90
    image, kernel = jnp.zeros((1, 2, 8, 8)), jnp.zeros((6, 2, 3, 3))
    convolve = functools.partial(jax.lax.conv, window_strides=(1, 1), padding="SAME")
    assert count(convolve, image, kernel) == 2 * 64 * 6 * 2 * 9


def test_gradients_recomputation_and_what_nobody_needs():
    x, w = jnp.zeros((5, 3)), jnp.zeros((3, 3))
    product = 2 * 5 * 3 * 3

    def loss(w, x):
        return ((jnp.tanh(x @ w) @ w) ** 2).sum()

    # Forward two; backward two for w, and one through the second product.
    whole = count(jax.value_and_grad(loss), w, x)
    assert whole == 5 * product
    # The square wants the second product again, so both are.
    assert count(jax.value_and_grad(jax.checkpoint(loss)), w, x) == whole + 2 * product
    assert count(lambda x, w: (x, x @ w)[0], x, w) == 0


@functools.cache
def of_a_step(*flags):
    """Of the 19B model at 640x352x121 with references, in units of 1e12, per sample."""
    arguments = ["train", "--config", str(REPO / "configs/dub.py"), "--config.mesh.data=1"]
    arguments += [f"--config.model.model_path={CONFIG}", *(f"--config.{flag}" for flag in flags)]
    run = settings.read(cli.parse_config(arguments))
    config = json.loads(CONFIG.read_text())
    training = prepare_training(run, config, sharding.make_mesh(1, 1))
    shape = shape_of_size(training.config, training.layout, 640, 352, 121, Fraction(25))
    flops = sample_flops(training, shape)
    return flops.model / 1e12, flops.total / 1e12


WHOLE = (
    "training_strategy.enable_cross_attention_masking=False",
    "validation.enable_cross_attention_masking=False",
)
NO_REMAT = "optimization.enable_gradient_checkpointing=False"


def test_the_budget_of_the_real_step():
    """Forward 245.6 without the modulations of every token (1.68: here of two timesteps), base
    gradients 183.2, attention's backward twice its forward 92.2, adapters' 20.7; checked with
    torch's FlopCounterMode where the budget was made."""
    model, total = of_a_step(*WHOLE)
    assert model == pytest.approx(245.6 - 1.68 + 183.2 + 92.2 + 20.7, rel=0.001)
    # All of the forward again but net.2, of which no gradient needs the result.
    recomputed = 243.8 - 1.68 - 48 * 0.9449 * (1 + 242 / 7040 / 4)
    assert total - model == pytest.approx(recomputed, rel=0.02)
    assert of_a_step(*WHOLE, NO_REMAT) == (model, model)


def test_the_compiled_program_does_as_much():
    """717 TFLOP are in the program that XLA compiles for an H100; it computes the scores once more
    in attention's backward (half of attention's forward, 45.1)."""
    _, total = of_a_step()
    assert total + 45.1 / 2 == pytest.approx(717, rel=0.002)


def test_the_adapters_share():
    model, _ = of_a_step(NO_REMAT)
    fewer, _ = of_a_step(NO_REMAT, "lora.target_modules=('to_k','to_q','to_v','to_out.0')")
    # Eight widths of in and out for both streams: forward, and twice that for the gradients of A,
    # B and the input.
    missing = 48 * 2 * 128 * 2 * (5 * 4096 * 7040 + 5 * 2048 * 242) / 1e12
    assert model - fewer == pytest.approx(3 * missing, rel=1e-3)


def test_isolation_halves_the_attention_between_the_modalities():
    (whole, _), (isolated, _) = of_a_step(*WHOLE, NO_REMAT), of_a_step(NO_REMAT)
    linears, scores = 2 * 240.3e9 / 2, 2 * 14.0e9 * 3 / 4
    adapters = 2 * 2 * 128 * (7040 + 242) / 2 * 2 * (4096 + 2048)
    # Forward, base gradient of the input, attention's two, the adapters' two.
    assert (whole - isolated) * 1e12 / 48 == pytest.approx(
        2 * linears + 3 * scores + 3 * adapters, rel=0.01
    )


def test_peaks_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA RTX A4000") is None
    assert peak_flops("cpu") is None
