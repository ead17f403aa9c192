"""Clips to latents and back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from justdubit_jax.devices.choose import CONVOLUTIONS
from justdubit_jax.latents.shapes import Frames, Latents
from justdubit_jax.latents.tiling import Tiling, decode_tiled, encode_tiled
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import Checkpoint
from justdubit_jax.weights.parts import load_part

Code = Callable[[Any, jax.Array], jax.Array]  # of a model and its input


def video_encoder(
    checkpoint: Checkpoint, dtype: DTypeLike, tiling: Tiling | None = None
) -> Callable[[Sequence[Frames]], list[Latents]]:
    """Clips of one shape (8k+1 frames, multiples of 32 pixels) to normalised latents [c, f, y, x].

    Clips are encoded as one batch, or each in tiles.
    """
    code = compiled(encoding(dtype), load_part(checkpoint, keys.VIDEO_ENCODER, dtype))

    def run(clips: Sequence[Frames]) -> list[Latents]:
        if tiling:
            return [encode_tiled(code, clip, tiling) for clip in clips]
        return list(np.asarray(code(np.stack(clips))))

    return run


def video_decoder(
    checkpoint: Checkpoint, dtype: DTypeLike, tiling: Tiling
) -> Callable[[Latents], Iterator[Frames]]:
    """Normalised latents [c, f, y, x] to a clip, in tiles: the frames of each as it is decoded."""
    model = load_part(checkpoint, keys.VIDEO_DECODER, dtype)

    decode = decoding(dtype)

    def decode_levels(model: Any, latents: jax.Array) -> jax.Array:
        return to_levels(decode(model, latents))

    tile, whole = compiled(decode, model), compiled(decode_levels, model)

    def run(latents: Latents) -> Iterator[Frames]:
        if tiling.holds(*latents.shape[1:]):
            yield np.asarray(whole(latents[None]))[0]
        else:
            yield from decode_tiled(tile, latents, tiling)

    return run


def encoding(dtype: DTypeLike) -> Code:
    """The encoder's program: bytes [b, f, y, x, 3] to latents [b, c, f, y, x], float32."""

    def encode(model: Any, pixels: jax.Array) -> jax.Array:
        frames = rearrange(pixels, "b f y x c -> b c f y x").astype(jnp.float32) / 127.5 - 1
        return model(frames.astype(dtype)).astype(jnp.float32)

    return encode


def decoding(dtype: DTypeLike) -> Code:
    """The decoder's program: latents [b, c, f, y, x] to a video in -1..1 [b, 3, f, y, x]."""
    return lambda model, latents: model(latents.astype(dtype)).astype(jnp.float32)


def to_levels(video: Float[Array, "b 3 f y x"]) -> UInt8[Array, "b f y x 3"]:
    """Of a video in -1..1; rounded down, as in Lightricks/LTX-2's decode_video."""
    levels = jnp.clip((video + 1) / 2, 0, 1) * 255
    return rearrange(levels.astype(jnp.uint8), "b c f y x -> b f y x c")


def compiled(code: Code, model: nnx.Module) -> Callable[..., Any]:
    """code(model, x) as a compiled function of x, with convolutions as a GPU has them fastest."""
    run, weights = jitted(code, model)
    return lambda x: run(weights, jnp.asarray(x))


def jitted(code: Code, model: nnx.Module) -> tuple[jax.stages.Wrapped, Any]:
    """The same as a function of weights and x, and the model's weights, which may be shapes."""
    graphdef, weights = nnx.split(model)
    run = jax.jit(
        lambda weights, x: code(nnx.merge(graphdef, weights), x), compiler_options=CONVOLUTIONS
    )
    return run, weights
