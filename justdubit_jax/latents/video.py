"""Clips to latents and back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from justdubit_jax.latents.shapes import Frames, Latents
from justdubit_jax.latents.tiling import Tiling, decode_tiled, encode_tiled
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint
from justdubit_jax.weights.parts import load_part


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


def _from_pixels(frames: Frames) -> Float[np.ndarray, "3 f y x"]:
    return np.moveaxis(frames, -1, 0).astype(np.float32) / 127.5 - 1
