"""Clips, sounds and prompts to what the transformer sees, and back.

Each function loads one model and returns a function from host arrays to host arrays; drop that
function and the weights leave the device. Shared by preprocessing and sampling.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, UInt8

from justdubit_jax.errors import InputError
from justdubit_jax.latents.tiling import Tiling, decode_tiled, encode_tiled
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from justdubit_jax.models.mel import MelConfig, log_mel
from justdubit_jax.models.vocoder import Vocoder
from justdubit_jax.weights import keys
from justdubit_jax.weights import load as weights
from justdubit_jax.weights.checkpoint import Checkpoint, open_gemma
from justdubit_jax.weights.parts import build_part, load_part

PROMPT_TOKENS = 1024

# An underscore leaves a size open: one function may hold several clips.
Frames = UInt8[np.ndarray, "_f _y _x 3"]
Sound = Float[np.ndarray, "2 _n"]
Latents = Float[np.ndarray, "_c ..."]
Contexts = tuple[Float[np.ndarray, "_t _d"], Float[np.ndarray, "_t _d"]]


def default_dtype() -> Any:
    """bfloat16 on an accelerator, float32 on a CPU, where bfloat16 is emulated."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def video_encoder(
    checkpoint: Checkpoint, dtype: DTypeLike, tiling: Tiling | None = None
) -> Callable[[Sequence[Frames]], list[Latents]]:
    """Clips of one shape (8k+1 frames, multiples of 32 pixels) to normalised latents [c, f, y, x].

    Clips are encoded as one batch, or each in tiles.
    """
    model = load_part(checkpoint, keys.VIDEO_ENCODER, dtype)

    @nnx.jit
    def encode(model: Any, frames: jax.Array) -> jax.Array:
        return model(frames.astype(dtype)).astype(jnp.float32)

    def tile(frames: Any) -> jax.Array:
        return encode(model, jnp.asarray(frames))

    def run(clips: Sequence[Frames]) -> list[Latents]:
        if tiling:
            return [encode_tiled(tile, clip, tiling) for clip in clips]
        return list(np.asarray(tile(np.stack([_from_pixels(clip) for clip in clips]))))

    return run


def video_decoder(
    checkpoint: Checkpoint, dtype: DTypeLike, tiling: Tiling
) -> Callable[[Latents], Iterator[Frames]]:
    """Normalised latents [c, f, y, x] to a clip, in tiles: the frames of each as it is decoded."""
    model = load_part(checkpoint, keys.VIDEO_DECODER, dtype)

    @nnx.jit
    def decode(model: Any, latents: jax.Array) -> jax.Array:
        return model(latents.astype(dtype)).astype(jnp.float32)

    def tile(latents: Any) -> jax.Array:
        return decode(model, jnp.asarray(latents))

    return lambda latents: decode_tiled(tile, latents, tiling)


def audio_encoder(checkpoint: Checkpoint) -> tuple[Callable[[Sound], Latents], int]:
    """Stereo sound to normalised latents [c, t, m], and the sample rate that it must have.

    In float32: the log-mel's quiet parts do not survive bfloat16.
    """
    model: AudioEncoder = load_part(checkpoint, keys.AUDIO_ENCODER, jnp.float32)
    mel = MelConfig.from_metadata(checkpoint.config)
    encode = nnx.jit(lambda model, sound: model(log_mel(sound, mel)))
    return lambda sound: np.asarray(encode(model, jnp.asarray(sound)[None])[0]), mel.sample_rate


def sample_rate(checkpoint: Checkpoint) -> int:
    """The sample rate of the sound that the audio encoder takes."""
    return MelConfig.from_metadata(checkpoint.config).sample_rate


def audio_latent_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Channels and frequency bins of an audio latent."""
    channels = AudioVAEConfig.from_metadata(checkpoint.config).z_channels
    return channels, MelConfig.from_metadata(checkpoint.config).bins // 4


def audio_decoder(checkpoint: Checkpoint) -> tuple[Callable[[Latents], Sound], int]:
    """Normalised latents [c, t, m] to stereo sound, and its sample rate. In float32."""
    decoder: AudioDecoder = load_part(checkpoint, keys.AUDIO_DECODER, jnp.float32)
    vocoder: Vocoder = load_part(checkpoint, keys.VOCODER, jnp.float32)
    decode = nnx.jit(lambda decoder, vocoder, latents: vocoder(decoder(latents)))

    def run(latents: Latents) -> Sound:
        return np.asarray(decode(decoder, vocoder, jnp.asarray(latents)[None])[0])

    return run, vocoder.output_sample_rate


def text_encoder(
    checkpoint: Checkpoint, gemma_folder: Path, dtype: DTypeLike
) -> Callable[[Sequence[str]], list[Contexts]]:
    """Prompts to (video context, audio context), [1024, d] each, behind the connectors.

    The padding of a prompt is filled with the connectors' registers, so all tokens count.
    """
    gemma_files = open_gemma(gemma_folder)
    gemma_model = build_part(keys.GEMMA, gemma_files.config, gemma_files.shapes)
    config = gemma_model.config
    connectors_model = build_part(keys.CONNECTORS, checkpoint.config, checkpoint.shapes)
    width = config.hidden_size * (len(config.sliding) + 1)
    if (wanted := connectors_model.aggregate_embed.weight.shape[1]) != width:
        raise InputError(
            f"{gemma_folder}: hidden states are {config.hidden_size} x {len(config.sliding) + 1} "
            f"= {width} wide, the checkpoint's text projection takes {wanted}"
        )
    tokenize = load_tokenizer(gemma_folder, config.vocab_size)
    gemma = weights.load_weights(gemma_files, keys.GEMMA, gemma_model, dtype)
    connectors = weights.load_weights(checkpoint, keys.CONNECTORS, connectors_model, dtype)

    @nnx.jit
    def encode(gemma: Any, connectors: Any, ids: jax.Array, mask: jax.Array) -> Any:
        return connectors(gemma(ids, mask), mask)

    def run(prompts: Sequence[str]) -> list[Contexts]:
        ids, mask = tokenize(prompts)
        video, audio = encode(gemma, connectors, jnp.asarray(ids), jnp.asarray(mask))
        return list(zip(np.asarray(video), np.asarray(audio), strict=True))

    return run


def load_tokenizer(
    folder: Path, vocab_size: int
) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Prompts to token ids and mask, int32 [b, 1024], stripped and padded on the left."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
    from transformers import AutoTokenizer  # takes seconds; only who reads prompts waits for it

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no tokenizer that transformers loads: {error}") from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > vocab_size and max(tokenizer.get_vocab().values()) >= vocab_size:
        raise InputError(f"{folder}: tokenizer has ids beyond the model's {vocab_size} embeddings")

    def run(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        for prompt, ids in zip(prompts, tokenizer(list(prompts))["input_ids"], strict=True):
            if len(ids) > PROMPT_TOKENS:
                count = f"{PROMPT_TOKENS} of {len(ids)} tokens"
                warnings.warn(f"prompt cut to {count}: {prompt[:60]!r}…", stacklevel=2)
        encoded = tokenizer(
            [prompt.strip() for prompt in prompts],
            padding="max_length",
            max_length=PROMPT_TOKENS,
            truncation=True,
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        return np.asarray(ids, np.int32), np.asarray(mask, np.int32)

    return run


def _from_pixels(frames: Frames) -> Float[np.ndarray, "3 f y x"]:
    return np.moveaxis(frames, -1, 0).astype(np.float32) / 127.5 - 1
