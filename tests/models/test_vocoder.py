import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models.bandwidth import vocoder
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.vocoder import Upsample, Vocoder, VocoderConfig
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights

CHECKPOINT = golden_checkpoint("vocoder_20")
CONFIG = VocoderConfig.from_section(CHECKPOINT.config["vocoder"], "vocoder")
GOLDEN, _ = load_golden("vocoder_20")

run = nnx.jit(lambda model, x: model(x))


def load(dtype="float32") -> nnx.Module:
    model = nnx.eval_shape(lambda: Vocoder(CONFIG))
    return load_weights(CHECKPOINT, keys.VOCODER, model, jnp.dtype(dtype))


@pytest.mark.parametrize("suffix", ["", "_odd"])
def test_waveform_matches_the_reference(suffix):
    waveform = run(load(), GOLDEN[f"input.mel{suffix}"])
    # 40 times the reference's own float32 error; ours is 5e-7.
    assert error(waveform, GOLDEN[f"expect.waveform{suffix}"]) < 2e-5


def test_bfloat16():
    # 8 bits of mantissa: 1 % after 5 stages of short sums.
    waveform = run(load("bfloat16"), jnp.asarray(GOLDEN["input.mel_odd"], jnp.bfloat16))
    assert waveform.dtype == jnp.bfloat16
    assert error(waveform.astype(jnp.float32), GOLDEN["expect.waveform_odd"]) < 0.05


@pytest.mark.parametrize(("kernel", "rate"), [(16, 6), (15, 5), (4, 2), (7, 2)])
def test_upsampling_is_a_transposed_convolution(kernel, rate):
    """Every input adds its multiple of the kernel at i * rate, then both ends are cut."""
    rng = np.random.default_rng(kernel)
    x, weight = rng.normal(size=(2, 3, 5)), rng.normal(size=(3, 4, kernel))
    full = np.zeros((2, 4, 4 * rate + kernel))
    for i in range(5):
        full[:, :, i * rate : i * rate + kernel] += np.einsum("bc,cdk->bdk", x[:, :, i], weight)
    cut = (kernel - rate) // 2
    up = Upsample(3, 4, kernel, rate)
    up.weight = Frozen(jnp.asarray(weight, jnp.float32))
    got = up(jnp.asarray(x, jnp.float32))
    assert error(got, full[:, :, cut : full.shape[-1] - cut]) < 1e-6


def test_published_sizes():
    config = VocoderConfig.from_section({"resblock": "1", "stereo": True}, "vocoder")
    assert (config.channels, config.output_sample_rate) == (1024, 24000)
    log_mel = jax.ShapeDtypeStruct((1, 2, 485, 64), jnp.bfloat16)
    model = nnx.eval_shape(lambda: Vocoder(config))
    waveform = nnx.eval_shape(lambda model, x: model(x), model, log_mel)
    assert waveform.shape == (1, 2, 485 * 240)
    assert model.output_sample_rate == 24000


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "vocoder.resblock: got None, expected '1'"),
        ({"resblock": "AMP1", "stereo": True}, "vocoder.resblock: got 'AMP1', expected '1'"),
        ({"resblock": "1"}, "vocoder.stereo: got None, expected True"),
        ({"vocoder": {}, "bwe": {}}, "vocoder.bwe.input_sampling_rate: missing"),
    ],
)
def test_other_vocoders_are_refused(section, message):
    with pytest.raises(InputError, match=message):
        vocoder({"vocoder": section})
