"""The video VAE against the reference, its refusals, and its full-size shapes."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models.video_vae import (
    VideoDecoder,
    VideoDecoderConfig,
    VideoEncoder,
    VideoEncoderConfig,
)
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected, load_weights
from justdubit_jax.weights.parts import load_part

# The reference in float32 is 3e-6 from itself in float64 on these narrow models, whose pixel norms
# over few channels amplify rounding; thirty times that.
TOLERANCE = 9e-5

CHECKPOINT = golden_checkpoint("video_vae")

# The `vae` section of the published 19B checkpoint.
LTX_2_19B = {
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 5, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
    ]
    * 3
    + [["res_x", {"num_layers": 5, "inject_noise": False}]],
    "timestep_conditioning": False,
}


run = nnx.jit(lambda model, x: model(x))


def abstract_encoder(vae: dict) -> VideoEncoder:
    return nnx.eval_shape(lambda: VideoEncoder(VideoEncoderConfig.from_metadata({"vae": vae})))


def abstract_decoder(vae: dict) -> VideoDecoder:
    return nnx.eval_shape(lambda: VideoDecoder(VideoDecoderConfig.from_metadata({"vae": vae})))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Every block kind, reflection in the decoder; the video is stored as uint8."""
    return load_golden("video_vae")[0]


@pytest.fixture(scope="module")
def video(golden) -> np.ndarray:
    return golden["input.video"].astype(np.float32) / np.float32(127.5) - 1


@pytest.fixture(scope="module")
def encoder() -> nnx.Module:
    model = abstract_encoder(CHECKPOINT.config["vae"])
    return load_weights(CHECKPOINT, keys.VIDEO_ENCODER, model, jnp.dtype("float32"))


@pytest.fixture(scope="module")
def decoder() -> nnx.Module:
    model = abstract_decoder(CHECKPOINT.config["vae"])
    return load_weights(CHECKPOINT, keys.VIDEO_DECODER, model, jnp.dtype("float32"))


def test_encodes_one_frame_as_the_reference(golden, video, encoder):
    assert error(run(encoder, video[:, :, :1]), golden["expect.encode.f1"]) < TOLERANCE


def test_encodes_a_wide_clip_cropped_from_12_to_9_frames(golden, video, encoder):
    assert error(run(encoder, video), golden["expect.encode.f12_cropped_to_9"]) < TOLERANCE


def test_latents_do_not_depend_on_later_frames_nor_on_cropped_ones(video, encoder):
    latents = run(encoder, video)
    later, cropped = video.copy(), video.copy()
    later[:, :, 1:] = 0
    cropped[:, :, 9:] = 0
    np.testing.assert_array_equal(run(encoder, later)[:, :, :1], latents[:, :, :1])
    np.testing.assert_array_equal(run(encoder, cropped), latents)


@pytest.mark.parametrize("frames", [1, 3])
def test_decodes_as_the_reference(golden, decoder, frames):
    video = run(decoder, golden["input.latents"][:, :, :frames])
    assert video.shape == (2, 3, 8 * (frames - 1) + 1, 64, 96)
    assert error(video[..., 1::7, 2::9], golden[f"expect.decode.f{frames}"]) < TOLERANCE


def test_computes_in_the_dtype_of_its_input():
    vae = CHECKPOINT.config["vae"]
    video = jax.ShapeDtypeStruct((1, 3, 9, 64, 64), jnp.bfloat16)
    latents = nnx.eval_shape(run, abstract_encoder(vae), video)
    assert (latents.shape, latents.dtype) == ((1, 4, 2, 2, 2), jnp.bfloat16)
    decoded = nnx.eval_shape(run, abstract_decoder(vae), latents)
    assert (decoded.shape, decoded.dtype) == (video.shape, jnp.bfloat16)


@pytest.mark.parametrize(
    ("part", "build", "count", "fingerprint"),
    [
        (keys.VIDEO_ENCODER, abstract_encoder, 94, "0431e0f5aa1fc8cc552cc37ec2075f86"),
        (keys.VIDEO_DECODER, abstract_decoder, 92, "30427287f0d3f42cab9ceefa6ff466bb"),
    ],
)
def test_full_size_has_the_published_keys_and_shapes(part, build, count, fingerprint):
    """The fingerprint is of the sorted (key, shape) pairs of the published 19B file."""
    shapes = sorted(expected(part, build(LTX_2_19B)).items())
    assert len(shapes) == count
    assert hashlib.md5(repr(shapes).encode()).hexdigest() == fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 2}, "vae.dims: got 2, expected 3"),
        ({"norm_layer": "group_norm"}, "vae.norm_layer: got 'group_norm', expected 'pixel_norm'"),
        ({"latent_log_var": "none"}, "vae.latent_log_var: got 'none', expected 'uniform'"),
        ({"spatial_padding_mode": "circular"}, "expected 'zeros' or 'reflect'"),
        ({"encoder_blocks": [["res_x", {}]]}, "vae.encoder_blocks: got block .*'res_x'"),
        ({"encoder_blocks": [["attn_res_x", 1]]}, "vae.encoder_blocks: got block .*'attn_res_x'"),
    ],
)
def test_encoder_refuses_what_it_does_not_support(change, message):
    with pytest.raises(InputError, match=message):
        VideoEncoderConfig.from_metadata({"vae": LTX_2_19B | change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep_conditioning": True}, "vae.timestep_conditioning: got True, expected False"),
        ({"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}]]}, "inject_noise"),
        ({"decoder_blocks": [["res_x_y", {}]]}, "vae.decoder_blocks: got block .*'res_x_y'"),
    ],
)
def test_decoder_refuses_what_it_does_not_support(change, message):
    with pytest.raises(InputError, match=message):
        VideoDecoderConfig.from_metadata({"vae": LTX_2_19B | change})


def test_timestep_conditioning_is_on_where_the_metadata_does_not_say():
    vae = {key: value for key, value in LTX_2_19B.items() if key != "timestep_conditioning"}
    with pytest.raises(InputError, match=r"got True \(the key's default\), expected False"):
        VideoDecoderConfig.from_metadata({"vae": vae})


def test_padding_defaults_differ_between_the_halves():
    assert VideoEncoderConfig.from_metadata({"vae": LTX_2_19B}).padding == "zeros"
    assert VideoDecoderConfig.from_metadata({"vae": LTX_2_19B}).padding == "reflect"


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="got 48 rows x 64 columns, expected multiples of 32"):
        abstract_encoder(LTX_2_19B)(jnp.zeros((1, 3, 9, 48, 64)))
    with pytest.raises(InputError, match="got 1 rows x 2 columns, expected at least 2 x 2"):
        abstract_decoder(LTX_2_19B)(jnp.zeros((1, 128, 1, 1, 2)))


def test_the_decoder_of_ltx_2_3_equals_the_reference():
    """Zeros around the pictures; space, time and both are doubled by blocks of their own."""
    tensors, _ = load_golden("video_vae_23")
    decoder = load_part(golden_checkpoint("video_vae_23"), keys.VIDEO_DECODER, jnp.float32)
    video = run(decoder, tensors["input.latent"][:, :, :1])
    # Thirty times the reference's own error on this narrow model.
    assert error(video, tensors["expect.decode.f1"]) < 9e-4
