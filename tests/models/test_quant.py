"""Quantized storage of the blocks' linears: codes, memory, losses, a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import golden_checkpoint
from helpers.lines import json_lines
from helpers.toy import config
from helpers.training import FACE, GRID, META, TARGETS, batch, draws, objective
from helpers.training import start as golden_start

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models import quant
from justdubit_jax.models.attention import AttentionConfig, Execution
from justdubit_jax.models.layers import Frozen, Linear
from justdubit_jax.models.transformer import Modality, Transformer
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.training import settings
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights, parameters

CHECKPOINT = golden_checkpoint("transformer_19b")
CONFIG = TransformerConfig.from_metadata(CHECKPOINT.config)


def quantize(model, scheme):
    return quant.quantize(model, scheme, keys.TRANSFORMER.is_stacked)


def decoded(weight, scheme, dtype=jnp.float32):
    values, scales = jax.jit(quant.encode, static_argnums=1)(weight, scheme)
    assert values.dtype == (jnp.int8 if scheme == "int8" else jnp.uint8)
    return quant.decode(values, scales, scheme, weight.shape[-1], dtype)


@pytest.mark.parametrize("width", [1024, 40, 24])
@pytest.mark.parametrize(("scheme", "limit"), [("int8", 0.008), ("fp8", 0.03), ("nf4", 0.1)])
def test_error_of_gaussian_weights(scheme, limit, width):
    weight = jax.random.normal(jax.random.key(0), (2, 256, width))
    got = decoded(weight, scheme)
    assert got.shape == weight.shape
    error = jnp.sqrt(jnp.mean((got - weight) ** 2) / jnp.mean(weight**2))
    assert limit / 2 < error < limit
    np.testing.assert_array_equal(got[1], decoded(weight[1], scheme))
    np.testing.assert_array_equal(decoded(jnp.zeros((3, width)), scheme), 0)


@pytest.mark.parametrize(
    ("scheme", "exact"),
    [
        ("int8", np.arange(-127, 128)),
        ("fp8", np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)),
        ("nf4", np.tile(quant.NF4, 4)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_numbers_of_the_code_are_exact(scheme, exact, scale):
    weight = jnp.asarray(exact[np.isfinite(exact)] * scale, jnp.float32)[None]
    np.testing.assert_array_equal(decoded(weight, scheme), weight)


def test_nf4_takes_the_nearest_code():
    row = np.linspace(-1, 1, 64).astype(np.float32)  # its largest is 1, so is the scale
    nearest = quant.NF4[np.abs(row[:, None] - quant.NF4).argmin(1)]
    np.testing.assert_array_equal(decoded(row[None], "nf4")[0], nearest)


def test_sizes_of_the_19b_model_in_bytes():
    """8 or 4.25 bits a number (nf4: 16 bits of scale per 64), beside bfloat16's 16."""
    config = dataclasses.replace(
        CONFIG,
        layers=48,
        video=dataclasses.replace(CONFIG.video, attention=AttentionConfig(32, 128)),
        audio=dataclasses.replace(CONFIG.audio, attention=AttentionConfig(32, 64)),
    )
    model = nnx.eval_shape(lambda: Transformer(config))
    numbers = sum(
        np.prod(v.shape)
        for p, v in parameters(model).items()
        if p.startswith("blocks.") and v.ndim == 3 and "table" not in p
    )
    for scheme, bits in (("int8", 8), ("fp8", 8), ("nf4", 4.25)):
        stored = parameters(quantize(model, scheme)).items()
        size = sum(v.size * v.dtype.itemsize for p, v in stored if ".weight." in p)
        assert size * 8 / numbers == pytest.approx(bits, rel=2e-3)  # scales a row: 32 bits of 2048


def test_every_linear_of_the_blocks_and_nothing_else():
    model = quantize(nnx.eval_shape(lambda: Transformer(CONFIG)), "nf4")
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            assert isinstance(module.weight, quant.Quantized) == (path[0] == "blocks"), path
    names = {path.partition(".weight.")[0] for path in parameters(model) if "val" in path}
    assert len(names) == 2 * (4 + 4 + 2 + 4)  # two attentions, ff and a cross attention a stream


def test_adapters_may_come_first_or_last():
    adapter = lora.LoRAConfig(4, 4, 0.0, TARGETS)

    def attached(model):
        lora.attach(model, adapter)
        return model

    plain = nnx.eval_shape(lambda: Transformer(CONFIG))
    first = quantize(lora.adapted_model(CONFIG, adapter)[0], "nf4")
    last = nnx.eval_shape(attached, quantize(plain, "nf4"))
    shapes = [
        {path: (type(v), v.shape, v.dtype) for path, v in nnx.to_flat_state(nnx.state(model))}
        for model in (first, last)
    ]
    assert shapes[0] == shapes[1]
    assert {kind for kind, _, _ in shapes[0].values()} == {Frozen, nnx.LoRAParam}


@pytest.mark.parametrize(
    ("scheme", "remat"),
    [("nf4", "none")],
)
def test_the_backward_pass_keeps_no_weight(scheme, remat):
    """A block more costs its activations, less than a copy of its bytes: none is a residual."""
    adapter = lora.LoRAConfig(4, 4, 0.0, ("attn1.to_q", "ff.net.2"))

    def compiled(layers):
        wide = dataclasses.replace(CONFIG.video, attention=AttentionConfig(4, 64))
        sizes = dataclasses.replace(CONFIG, layers=layers, video=wide)

        def build():
            model = Transformer(sizes)
            lora.attach(model, adapter)
            return model

        model = quantize(nnx.eval_shape(build), scheme)
        graphdef, adapters, frozen = lora.split(model)

        def loss(adapters, frozen):
            tokens = modality(sizes.video, 3), modality(sizes.audio, 1)
            model = lora.merge(graphdef, adapters, frozen)
            return sum(
                x.sum() for x in model(*tokens, cross_timestep="own", execution=Execution(remat))
            )

        memory = jax.jit(jax.grad(loss)).lower(adapters, frozen).compile().memory_analysis()
        leaves = parameters(model).items()
        stored = sum(v.size * v.dtype.itemsize for p, v in leaves if ".weight." in p) / layers
        return memory.temp_size_in_bytes, stored

    def modality(stream, axes):
        return Modality(
            latents=jnp.zeros((1, 2, stream.in_channels)),
            positions=jnp.zeros((1, axes, 2, 2)),
            context=jnp.zeros((1, 2, stream.context_dim)),
            sigma=jnp.ones(1),
            clean_count=jnp.zeros(1, jnp.int32),
        )

    (short, stored), (long, _) = compiled(2), compiled(6)
    assert (long - short) / 4 < 0.6 * stored


@functools.cache
def golden_loss(scheme):
    """The golden step's loss of (adapters, draws) with a bfloat16 model."""
    adapter = lora.LoRAConfig(META["rank"], META["alpha"], 0.0, TARGETS)
    model, _ = lora.adapted_model(CONFIG, adapter)
    model = load_weights(CHECKPOINT, keys.TRANSFORMER, model, jnp.bfloat16, None, scheme)
    graphdef, _, frozen = lora.split(model)

    def loss(adapters, draws):
        model = lora.merge(graphdef, adapters, frozen)
        masked = batch()._replace(face_mask=FACE)
        return objective("own", dtype=jnp.bfloat16).loss(model, masked, draws, GRID)[0]

    return jax.jit(loss)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    adapter = lora.LoRAConfig(META["rank"], META["alpha"], 0.0, TARGETS)
    shapes = lora.split(lora.adapted_model(CONFIG, adapter)[0])[1]
    return golden_start(tmp_path_factory.mktemp("lora"), shapes)


# Twice what was measured: 6e-4, 1.7e-3, 1.0e-2, where the weights are 0.006, 0.025, 0.09 away and
# bfloat16 itself is 1.2e-3 from float32.
@pytest.mark.parametrize(("scheme", "limit"), [("int8", 1.2e-3), ("fp8", 3.5e-3), ("nf4", 0.02)])
def test_the_golden_losses_stay_close(start, scheme, limit):
    for step in range(3):
        want = golden_loss(None)(start, draws(step))
        assert abs(golden_loss(scheme)(start, draws(step)) - want) < limit * want


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (None, None),
        ("int8", "int8"),
        ("fp8", "fp8"),
        ("nf4", "nf4"),
        ("int8-quanto", "int8"),
        ("fp8-quanto", "fp8"),
        ("int4-quanto", "nf4"),
    ],
)
def test_names_in_the_config(demo, tmp_path, name, scheme):
    flag = () if name is None else (f"--config.acceleration.quantization={name}",)
    assert settings.read(config(demo, tmp_path, *flag)).quantization == scheme


@pytest.mark.parametrize("name", ["int2-quanto", "fp8uz-quanto", "NF4", ""])
def test_other_names_are_refused_with_the_list(demo, tmp_path, name):
    with pytest.raises(InputError, match="one of int8, fp8, nf4, int8-quanto, fp8-quanto, int4"):
        settings.read(config(demo, tmp_path, f"--config.acceleration.quantization={name}"))


@pytest.mark.deep
def test_a_run_trains_and_measures_on_a_quantized_base(demo, tmp_path):
    flags = ("--config.acceleration.quantization=nf4", "--config.validation.holdout=1")
    flags += ("--config.optimization.steps=8", "--config.validation.interval=8")
    train.main(config(demo, tmp_path, *flags))
    losses = [r["loss"] for r in json_lines(tmp_path / "metrics.jsonl")]
    held_out = [r["loss"] for r in json_lines(tmp_path / "validation.jsonl")]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert held_out[1] < held_out[0]
