"""Clips to latents and back: what is done to pixels around the VAE."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import golden_checkpoint
from helpers.layout import LTX2

from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import to_levels, video_decoder, video_encoder
from justdubit_jax.weights import keys
from justdubit_jax.weights.parts import load_part

CHECKPOINT = golden_checkpoint("video_vae")


def test_levels_are_rounded_down_and_stay_within_a_byte():
    values = [-1.5, -1, 2 * 9.9 / 255 - 1, 2 * 10.1 / 255 - 1, 0.999, 1, 1.5]
    video = jnp.broadcast_to(jnp.asarray(values)[None, None, None, None], (1, 3, 2, 4, 7))
    levels = to_levels(video)
    assert levels.shape == (1, 2, 4, 7, 3) and levels.dtype == jnp.uint8
    np.testing.assert_array_equal(levels[0, 1, 2, :, 0], [0, 0, 9, 10, 254, 255, 255])


def test_channels_stay_where_they_are():
    video = jnp.stack([jnp.full((1, 1, 1, 1), v) for v in (-1.0, 0.01, 1.0)], 1)
    np.testing.assert_array_equal(to_levels(video)[0, 0, 0, 0], [0, 128, 255])


def test_a_clip_of_one_tile_comes_as_levels_of_what_is_decoded():
    latents = np.random.default_rng(0).standard_normal((4, 2, 2, 3), np.float32)
    (frames,) = video_decoder(CHECKPOINT, jnp.float32, default_tiling(LTX2))(latents)
    video = load_part(CHECKPOINT, keys.VIDEO_DECODER, jnp.float32)(jnp.asarray(latents)[None])
    # Another program, in which here and there rounding makes the next level.
    off = np.abs(frames.astype(int) - np.asarray(to_levels(video)[0]).astype(int))
    assert frames.shape == (9, 64, 96, 3) and off.max() <= 1 and (off > 0).mean() < 1e-3


@pytest.mark.parametrize("tiling", [None, default_tiling(LTX2)])
def test_bytes_are_encoded_as_minus_one_to_one(tiling):
    clip = np.random.default_rng(1).integers(0, 256, (9, 32, 64, 3), np.uint8)
    (latents,) = video_encoder(CHECKPOINT, jnp.float32, tiling)([clip])
    pixels = np.moveaxis(clip, -1, 0).astype(np.float32) / 127.5 - 1
    want = load_part(CHECKPOINT, keys.VIDEO_ENCODER, jnp.float32)(jnp.asarray(pixels)[None])[0]
    error = np.linalg.norm(latents - want) / np.linalg.norm(want)
    assert error < 9e-5  # the tolerance of test_video_vae
