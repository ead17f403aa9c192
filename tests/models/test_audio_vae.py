import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models import mel
from justdubit_jax.models.audio_vae import AudioDecoder, AudioEncoder, AudioVAEConfig
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import load_weights

# 25 times the reference's own float32 error; ours is 1.1e-6 at most.
TOLERANCE = 2e-5

CHECKPOINT = golden_checkpoint("audio_vae")
CONFIG = AudioVAEConfig.from_metadata(CHECKPOINT.config)
GOLDEN, _ = load_golden("audio_vae")

run = nnx.jit(lambda model, x: model(x))


def load_encoder(dtype="float32") -> nnx.Module:
    model = nnx.eval_shape(lambda: AudioEncoder(CONFIG))
    return load_weights(CHECKPOINT, keys.AUDIO_ENCODER, model, jnp.dtype(dtype))


def load_decoder(dtype="float32") -> nnx.Module:
    model = nnx.eval_shape(lambda: AudioDecoder(CONFIG))
    return load_weights(CHECKPOINT, keys.AUDIO_DECODER, model, jnp.dtype(dtype))


@pytest.mark.parametrize("frames", [1, 18, 19, 21])
def test_encoder_matches_the_reference(frames):
    latents = run(load_encoder(), GOLDEN["input.mel"][:, :, :frames])
    assert latents.shape[2] == -(-frames // 4)
    assert error(latents, GOLDEN[f"expect.encode.t{frames}"]) < TOLERANCE


@pytest.mark.parametrize("frames", [1, 6])
def test_decoder_matches_the_reference(frames):
    log_mel = run(load_decoder(), GOLDEN["input.latent"][:, :, :frames])
    assert error(log_mel, GOLDEN[f"expect.decode.t{frames}"]) < TOLERANCE


def test_waveform_to_latents_matches_the_reference():
    config = mel.MelConfig.from_metadata(CHECKPOINT.config)
    log_mel = mel.log_mel(jnp.asarray(GOLDEN["input.waveform_16k"]), config)
    assert error(log_mel, GOLDEN["expect.encode_waveform.log_mel"]) < TOLERANCE
    assert error(run(load_encoder(), log_mel), GOLDEN["expect.encode_waveform.latent"]) < TOLERANCE


def test_bfloat16():
    # 8 bits of mantissa through some 15 layers: 2 % here, and in the reference as much.
    log_mel = jnp.asarray(GOLDEN["input.mel"], jnp.bfloat16)
    latents = run(load_encoder("bfloat16"), log_mel)
    assert latents.dtype == jnp.bfloat16
    assert error(latents.astype(jnp.float32), GOLDEN["expect.encode.t21"]) < 0.06
    decoded = run(load_decoder("bfloat16"), jnp.asarray(GOLDEN["input.latent"], jnp.bfloat16))
    assert decoded.dtype == jnp.bfloat16
    assert error(decoded.astype(jnp.float32), GOLDEN["expect.decode.t6"]) < 0.06


def test_latent_i_ends_at_mel_frame_4i():
    encoder, log_mel = load_encoder(), GOLDEN["input.mel"]
    changed = log_mel.copy()
    changed[:, :, 17:] += 1
    before, after = run(encoder, log_mel), run(encoder, changed)
    np.testing.assert_array_equal(before[:, :, :5], after[:, :, :5])
    assert (before[:, :, 5] != after[:, :, 5]).any()


def test_decoded_frame_4i_needs_no_latent_after_i():
    decoder, latents = load_decoder(), GOLDEN["input.latent"]
    changed = latents.copy()
    changed[:, :, 5:] += 1
    before, after = run(decoder, latents), run(decoder, changed)
    np.testing.assert_array_equal(before[:, :, :17], after[:, :, :17])
    assert (before[:, :, 17] != after[:, :, 17]).any()


def test_statistics_invert():
    encoder, latents = load_encoder(), jnp.asarray(GOLDEN["input.latent"])
    assert isinstance(encoder, AudioEncoder)
    statistics = encoder.statistics
    assert error(statistics.denormalize(statistics.normalize(latents)), latents) < 1e-6


def test_published_sizes():
    """A clip of 121 frames at 25 per second: 485 mel frames, 122 latents of 8 x 16."""
    config = AudioVAEConfig(2, 2, 128, (1, 2, 4), res_blocks=2, z_channels=8)
    encoder = nnx.eval_shape(lambda: AudioEncoder(config))
    decoder = nnx.eval_shape(lambda: AudioDecoder(config))
    log_mel = jax.ShapeDtypeStruct((1, 2, 485, 64), jnp.bfloat16)
    latents = nnx.eval_shape(lambda model, x: model(x), encoder, log_mel)
    assert latents.shape == (1, 8, 122, 16)
    assert nnx.eval_shape(lambda model, x: model(x), decoder, latents).shape == (1, 2, 485, 64)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mid_block_add_attention", True),
        ("attn_resolutions", [64]),
        ("norm_type", "group"),
        ("causality_axis", "width"),
        ("double_z", False),
        ("downsample_time", True),
        ("resamp_with_conv", False),
        ("ch_mult", [1, 2]),
    ],
)
def test_unsupported_options_are_refused(option, value):
    config = copy.deepcopy(CHECKPOINT.config)
    config["audio_vae"]["model"]["params"]["ddconfig"][option] = value
    with pytest.raises(InputError, match=rf"ddconfig\.{option}: got .*, expected "):
        AudioVAEConfig.from_metadata(config)


def test_absent_options_take_the_defaults_of_the_reference():
    """Which are the published sizes, but with attention."""
    options = {"mid_block_add_attention": False, "attn_resolutions": []}
    config = {"audio_vae": {"model": {"params": {"ddconfig": options}}}}
    published = AudioVAEConfig(2, 2, 128, (1, 2, 4), res_blocks=2, z_channels=8)
    assert AudioVAEConfig.from_metadata(config) == published
    del options["mid_block_add_attention"]
    with pytest.raises(InputError, match="mid_block_add_attention: got True, expected False"):
        AudioVAEConfig.from_metadata(config)
