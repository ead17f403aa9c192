"""LTX-2.3's vocoder against the reference, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models.bandwidth import resampling_filter, vocoder
from justdubit_jax.models.snake import upsampled
from justdubit_jax.weights import keys
from justdubit_jax.weights.parts import load_part

CHECKPOINT = golden_checkpoint("vocoder_23")


def test_waveform_matches_the_reference():
    golden, _ = load_golden("vocoder_23")
    model = load_part(CHECKPOINT, keys.VOCODER, jnp.float32)
    waveform = nnx.jit(lambda model, x: model(x))(model, golden["input.mel_odd"])
    assert model.output_sample_rate == 48_000
    # Thirty times the reference's own float32 error; ours is 7e-6.
    assert error(waveform, golden["expect.waveform_odd"]) < 2e-4


def test_upsampling_keeps_a_slow_wave():
    """Three samples for one, at the places in time of a sine far below Nyquist."""
    time = np.arange(80) / 20
    wave = upsampled(jnp.sin(time)[None, None], jnp.asarray(resampling_filter(3)), 3, rim=7)
    assert wave.shape == (1, 1, 240)
    inside = slice(30, -30)  # away from the repeated ends
    # The filter's ripple: it weighs samples by 0.4 % too much or too little.
    assert np.abs(wave[0, 0] - np.sin(np.arange(240) / 60))[inside].max() < 0.01


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vocoder", {"resblock": "1"}, "vocoder.vocoder.resblock: got '1', expected 'AMP1'"),
        ("bwe", {"activation": "snake"}, "vocoder.bwe.activation: got 'snake'"),
        ("bwe", {"output_sampling_rate": 44100}, "got 44100, expected a multiple of the"),
    ],
)
def test_other_vocoders_are_refused(section, change, message):
    sections = CHECKPOINT.config["vocoder"]
    with pytest.raises(InputError, match=message):
        vocoder({"vocoder": sections | {section: sections[section] | change}})
