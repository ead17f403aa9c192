"""Tiled against untiled: stand-ins for the VAE whose result is known, then the VAE itself."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce, repeat
from flax import nnx
from helpers.golden import error, golden_checkpoint
from helpers.layout import LTX2

from justdubit_jax.errors import InputError
from justdubit_jax.latents.tiling import Tiling, decode_tiled, default_tiling, encode_tiled
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights
from justdubit_jax.weights.parts import build_part

CHECKPOINT = golden_checkpoint("video_vae")
SMALL = Tiling(LTX2, pixels=128, pixel_overlap=64, frames=25, frame_overlap=9)

# The convolutions of the golden VAE, summed up, see 224 pixels to each side, 110 frames back in the
# encoder and 46 frames to each side in the decoder. This leaves them less than what weighs nothing.
BEYOND_REACH = Tiling(LTX2, pixels=1024, pixel_overlap=896, frames=217, frame_overlap=185)


class Recorder:
    """A coder that notes the shapes it is given."""

    def __init__(self, code: Callable):
        self.code = code
        self.shapes = []

    def __call__(self, tile: np.ndarray):
        self.shapes.append(tile.shape)
        return self.code(tile)


def pool(video: np.ndarray) -> np.ndarray:
    """Latents that are the means of their pixels: one frame in the first, eight in the others."""
    cells = reduce(video, "b c f (y q) (x r) -> b c f y x", "mean", q=32, r=32)
    later = reduce(cells[:, :, 1:], "b c (f p) y x -> b c f y x", "mean", p=8)
    return np.concatenate([cells[:, :, :1], later], 2)


def unpool(latents: np.ndarray) -> np.ndarray:
    """Pixels that equal their latent."""
    return repeat(latents, "b c f y x -> b c (f p) (y q) (x r)", p=8, q=32, r=32)[:, :, 7:]


def pool_bytes(frames: np.ndarray) -> np.ndarray:
    """The same of bytes, channels last, as clips are."""
    return pool(from_levels(frames[0])[None])


def spoil(x: np.ndarray, frames: int, pixels: int) -> np.ndarray:
    """Wrong values all around, as padding makes them; so many frames at each end."""
    inside = np.zeros(x.shape, bool)
    inside[:, :, frames : -frames or None, pixels:-pixels, pixels:-pixels] = True
    return np.where(inside, x, 99)


def random_frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def from_levels(frames: np.ndarray) -> np.ndarray:
    return np.moveaxis(frames, -1, 0).astype(np.float32) / 127.5 - 1


def to_levels(video: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.clip((video + 1) * 127.5, 0, 255), 0, -1).astype(np.uint8)


SIZES = [(25, 128, 128), (33, 96, 128), (9, 96, 320), (41, 160, 96), (54, 288, 416), (209, 96, 96)]


@pytest.mark.parametrize("size", SIZES)
def test_encodes_in_tiles_of_one_shape_whose_spoilt_rims_and_starts_do_not_show(size):
    frames = random_frames(*size)
    encode = Recorder(lambda tile: spoil(pool_bytes(tile), 0, 1))
    latents = encode_tiled(encode, frames, SMALL)
    whole = frames[: size[0] - (size[0] - 1) % 8]
    want = pool(from_levels(whole)[None])[0]
    assert latents.shape == want.shape
    np.testing.assert_allclose(latents[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1], atol=1e-5)
    assert len(set(encode.shapes)) == 1
    assert all(np.less_equal(encode.shapes[0], (1, 25, 128, 128, 3)))


@pytest.mark.parametrize("size", SIZES)
def test_decodes_in_tiles_of_one_shape_whose_spoilt_rims_do_not_show(size):
    cells = ((size[0] - 1) // 8 + 1, size[1] // 32, size[2] // 32)
    levels = random_frames(*cells)
    decode = Recorder(lambda tile: spoil(unpool(tile), 2, 16))
    chunks = list(decode_tiled(decode, from_levels(levels + np.float32(0.5)), SMALL))
    got = np.concatenate(chunks)[2:-2, 16:-16, 16:-16]
    want = repeat(levels, "f y x c -> (f p) (y q) (x r) c", p=8, q=32, r=32)[7:]
    np.testing.assert_array_equal(got, want[2:-2, 16:-16, 16:-16])
    assert len(set(decode.shapes)) == 1
    assert all(np.less_equal(decode.shapes[0], (1, 3, 4, 4, 4)))


def test_a_clip_of_one_tile_is_coded_as_without_tiling():
    frames = random_frames(9, 64, 96)
    untiled = pool(from_levels(frames)[None])[0]
    np.testing.assert_array_equal(encode_tiled(pool_bytes, frames, default_tiling(LTX2)), untiled)
    (chunk,) = decode_tiled(unpool, untiled, default_tiling(LTX2))
    np.testing.assert_array_equal(chunk, to_levels(unpool(untiled[None])[0]))


def test_decoded_frames_come_as_soon_as_they_are_finished():
    decode = Recorder(unpool)
    chunks = decode_tiled(decode, np.zeros((3, 10, 4, 6), np.float32), SMALL)
    counts = [(len(chunk), len(decode.shapes)) for chunk in chunks]
    # Four latents in each of four lengths of two tiles; they start at latents 0, 2, 4 and 6.
    assert counts == [(16, 2), (16, 4), (16, 6), (25, 8)]


def test_tiles_cover_every_length_and_share_what_is_asked_for():
    for length, overlap, size in itertools.product(range(1, 50), (2, 3, 7), (3, 4, 8, 9)):
        if overlap >= size:
            continue
        tiling = Tiling(LTX2, 32 * size, 32 * overlap, 8 * size - 7, 8 * overlap - 7)
        spans = tiling.split(length, length, length)
        assert spans[0] == spans[1] == spans[2]
        assert (spans[0][0].start, spans[0][-1].stop) == (0, length)
        assert len({span.stop - span.start for span in spans[0]}) == 1
        assert spans[0][0].stop <= size
        for left, right in itertools.pairwise(spans[0]):
            assert left.start < right.start <= left.stop - overlap
        if len(spans[0]) > 1:  # one tile fewer would not do
            assert (len(spans[0]) - 1) * (size - overlap) + overlap < length


run = nnx.jit(lambda model, x: model(x))


@pytest.fixture(scope="module")
def encode() -> Callable:
    model = build_part(keys.VIDEO_ENCODER, CHECKPOINT.config, CHECKPOINT.shapes)
    model = load_weights(CHECKPOINT, keys.VIDEO_ENCODER, model, jnp.float32)
    return lambda tile: run(model, tile)


@pytest.fixture(scope="module")
def decode() -> Callable:
    model = build_part(keys.VIDEO_DECODER, CHECKPOINT.config, CHECKPOINT.shapes)
    model = load_weights(CHECKPOINT, keys.VIDEO_DECODER, model, jnp.float32)
    return lambda tile: run(model, tile)


def random_latents(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, *shape), np.float32)


@pytest.mark.parametrize("size", [(273, 32, 32), (1, 32, 1312)], ids=["time", "space"])
def test_encodes_as_without_tiling_where_the_overlap_is_beyond_the_reach(encode, size):
    """Within rounding: the tolerance of test_video_vae."""
    frames = random_frames(*size)
    tiled = Recorder(lambda tile: encode(from_levels(tile[0])[None]))
    got = encode_tiled(tiled, frames, BEYOND_REACH)
    assert len(tiled.shapes) > 1
    assert error(got, np.asarray(encode(from_levels(frames)[None]))[0]) < 9e-5


@pytest.mark.parametrize("size", [(31, 2, 2), (1, 2, 41)], ids=["time", "space"])
def test_decodes_as_without_tiling_where_the_overlap_is_beyond_the_reach(decode, size):
    """Within rounding, which here and there makes the next level."""
    latents = random_latents(*size)
    tiled = Recorder(decode)
    got = np.concatenate(list(decode_tiled(tiled, latents, BEYOND_REACH))).astype(int)
    want = to_levels(np.asarray(decode(latents[None]))[0])
    assert len(tiled.shapes) > 1
    assert np.abs(got - want).max() <= 1
    assert (got != want).mean() < 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((500, 128, 121, 25), "pixels: got 500, expected a multiple of 32"),
        ((640, 100, 121, 25), "pixel_overlap: got 100, expected a multiple of 32"),
        ((640, 128, 120, 25), "frames: got 120, expected a multiple of 8, plus 1"),
        ((640, 128, 121, 24), "frame_overlap: got 24, expected a multiple of 8, plus 1"),
        ((640, 32, 121, 25), "pixel_overlap: got 32, expected at least 64 and less than .* 640"),
        ((128, 128, 121, 25), "pixel_overlap: got 128, expected at least 64 and less .* 128"),
        ((640, 128, 121, 1), "frame_overlap: got 1, expected at least 9 and less than .* 121"),
        ((640, 128, 25, 33), "frame_overlap: got 33, expected at least 9 and less than .* 25"),
    ],
)
def test_a_tiling_that_cannot_work_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Tiling(LTX2, *values)


def test_sizes_that_are_not_whole_latents_are_refused():
    with pytest.raises(InputError, match="got 320 rows x 350 columns, expected multiples of 32"):
        encode_tiled(pool_bytes, random_frames(1, 320, 350), SMALL)
