"""Sound to latents and back, beside the models that do it."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax.latents.audio import audio_decoder
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint
from justdubit_jax.weights.parts import load_part


def test_the_decoded_sound_is_what_the_models_say(demo):
    checkpoint = open_checkpoint(demo / "assets/ltx-2-tiny.safetensors")
    layout = checkpoint.layout
    shape = (layout.audio_channels, 5, layout.audio_bins)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    decode, rate = audio_decoder(checkpoint)
    parts = (keys.AUDIO_DECODER, keys.VOCODER)
    decoder, vocoder = (load_part(checkpoint, part, jnp.float32) for part in parts)
    run = nnx.jit(lambda decoder, vocoder, x: vocoder(decoder(x)))
    want = np.asarray(run(decoder, vocoder, jnp.asarray(latents)[None]))[0]
    assert np.abs(want[0] - want[1]).max() > 1e-3  # its channels can be told apart
    np.testing.assert_allclose(decode(latents), want, atol=1e-6)
    assert rate == vocoder.output_sample_rate
