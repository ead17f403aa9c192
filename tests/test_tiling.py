"""Tiled coding against untiled: stand-in coders whose result is known, then the VAE itself."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce, repeat
from flax import nnx
from reference import error, golden_checkpoint

from justdubit_jax import keys, weights
from justdubit_jax.errors import InputError
from justdubit_jax.tiling import DEFAULT_TILING, Tiling, decode_tiled, encode_tiled

CHECKPOINT = golden_checkpoint("video_vae")
SMALL = Tiling(pixels=128, pixel_overlap=64, frames=25, frame_overlap=9)
WIDE = Tiling(pixels=9600, pixel_overlap=64, frames=9 * 8 + 1, frame_overlap=9)

# The reach of this VAE's convolutions, summed up layer by layer, is 7 latents in space and at most
# 14 in time. With overlaps that keep it inside what weighs nothing, tiling changes rounding only,
# which is why the tolerances are those of test_video_vae and, for levels rounded down, one level.
ROUNDING = 9e-5
BEYOND_REACH_SPACE = Tiling(pixels=32 * 30, pixel_overlap=32 * 28, frames=25, frame_overlap=9)
BEYOND_REACH_ENCODER = Tiling(pixels=64, pixel_overlap=32, frames=129, frame_overlap=121) if False else None


run = nnx.jit(lambda model, x: model(x))
