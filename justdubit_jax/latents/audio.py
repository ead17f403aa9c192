"""Sound to latents and back, in float32."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax.latents.shapes import Latents, Sound
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder
from justdubit_jax.models.bandwidth import BandwidthVocoder
from justdubit_jax.models.mel import MelConfig, log_mel
from justdubit_jax.models.vocoder import Vocoder
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint
from justdubit_jax.weights.parts import load_part


def audio_encoder(checkpoint: Checkpoint) -> Callable[[Sound], Latents]:
    """Stereo sound at the layout's sample rate to normalised latents [c, t, m].

    In float32: the log-mel's quiet parts do not survive bfloat16.
    """
    model: AudioEncoder = load_part(checkpoint, keys.AUDIO_ENCODER, jnp.float32)
    mel = MelConfig.from_metadata(checkpoint.config)
    encode = nnx.jit(lambda model, sound: model(log_mel(sound, mel)))
    return lambda sound: np.asarray(encode(model, jnp.asarray(sound)[None])[0])


def audio_decoder(checkpoint: Checkpoint) -> tuple[Callable[[Latents], Sound], int]:
    """Normalised latents [c, t, m] to stereo sound, and its sample rate. In float32."""
    decoder: AudioDecoder = load_part(checkpoint, keys.AUDIO_DECODER, jnp.float32)
    vocoder: Vocoder | BandwidthVocoder = load_part(checkpoint, keys.VOCODER, jnp.float32)
    decode = nnx.jit(lambda decoder, vocoder, latents: vocoder(decoder(latents)))

    def run(latents: Latents) -> Sound:
        return np.asarray(decode(decoder, vocoder, jnp.asarray(latents)[None])[0])

    return run, vocoder.output_sample_rate
