import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load_golden
from helpers.layout import CONFIG, LTX2

from justdubit_jax.errors import InputError
from justdubit_jax.models import tokens
from justdubit_jax.models.attention import frequency_grid, rotary_table
from justdubit_jax.models.tokens import Layout
from justdubit_jax.training.objective import shifted_logit_normal

GOLDEN, META = load_golden("tokens")


def test_layouts():
    video, audio = GOLDEN["input.video_latent"], GOLDEN["input.audio_latent"]
    assert (tokens.video_tokens(video) == GOLDEN["expect.video_tokens"]).all()
    assert (tokens.audio_tokens(audio) == GOLDEN["expect.audio_tokens"]).all()
    assert (tokens.video_latents(tokens.video_tokens(video), video.shape[2:]) == video).all()
    assert (tokens.audio_latents(tokens.audio_tokens(audio), audio.shape[1]) == audio).all()


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_video_positions_are_exact(fps):
    want = GOLDEN[f"expect.video_positions.fps{int(fps)}"]
    got = LTX2.video_positions(GOLDEN["input.video_latent"].shape[2:], fps)
    assert all((got == sample).all() for sample in want)


def test_audio_positions_are_exact():
    want = GOLDEN["expect.audio_positions"]
    assert all((LTX2.audio_positions(want.shape[2]) == sample).all() for sample in want)


def test_lengths():
    seconds = META["durations"]
    got = [LTX2.audio_latent_frames(s) for s in seconds]
    assert got == GOLDEN["expect.audio_latent_frames"].tolist()
    frames, fps = GOLDEN["input.pixel_frames"].tolist(), GOLDEN["input.pixel_fps"].tolist()
    got = [LTX2.audio_latent_frames(n / f) for n, f in zip(frames, fps, strict=True)]
    assert got == GOLDEN["expect.audio_latent_frames_of_video"].tolist()
    got = [LTX2.video_latent_frames(n) for n in frames]
    assert got == GOLDEN["expect.video_latent_frames"].tolist()


@pytest.mark.parametrize("case", ["pad0", "pad1", "pad2"])
def test_rotary_tables(case):
    want = GOLDEN[f"expect.rope.split.{case}.cos"], GOLDEN[f"expect.rope.split.{case}.sin"]
    _, heads, _, half = want[0].shape
    dim = 2 * heads * half
    bounds = LTX2.video_positions(GOLDEN["input.video_latent"].shape[2:], 25.0)[None]
    grid = frequency_grid(10000.0, 3, dim)
    got = rotary_table(jnp.asarray(bounds.mean(-1)), (20.0, 2048.0, 2048.0), grid, dim, heads)
    for g, w in zip(got, want, strict=True):
        # The golden README's limit. Angles reach 15,708 rad: one bit of an angle is 1e-3.
        assert np.abs(np.asarray(g).swapaxes(1, 2) - w).max() < 1e-5


def test_sigma_distribution():
    for normal, count, want in zip(
        GOLDEN["input.normal_samples"],
        GOLDEN["input.sequence_lengths"],
        GOLDEN["expect.logit_normal_timesteps"],
        strict=True,
    ):
        np.testing.assert_allclose(
            shifted_logit_normal(jnp.asarray(normal), int(count)), want, rtol=1e-6
        )


@pytest.mark.parametrize("count", [13, 126])
def test_rotary_angles_are_rounded_as_written(count):
    """A time / 20 that is one bit off moves cosines by 1e-3: no multiplication by 1 / 20."""
    time = np.arange(count, dtype=np.float32)[None, None] * np.float32(0.0237)
    grid = frequency_grid(10000.0, 1, 24)
    fraction = time[0, 0] / np.float32(20) * np.float32(2) - np.float32(1)
    angles = (fraction[:, None] * grid).astype(np.float64)
    cos, sin = rotary_table(jnp.asarray(time), (20.0,), grid, 24, 4)
    np.testing.assert_allclose(cos[0].reshape(count, -1), np.cos(angles), rtol=0, atol=1e-6)
    np.testing.assert_allclose(sin[0].reshape(count, -1), np.sin(angles), rtol=0, atol=1e-6)


def test_the_19b_checkpoints_layout():
    assert Layout(8, 32, 128, 8, 16, 16_000, 160, 4) == LTX2
    assert LTX2.grid(121, 352, 640) == (16, 11, 20)
    assert [n for n in range(-8, 26) if LTX2.is_legal(n)] == [1, 9, 17, 25]
    assert [LTX2.legal_frames(n) for n in (1, 8, 9, 24)] == [1, 1, 9, 17]


def test_a_layout_follows_the_checkpoints_blocks():
    """Half the compression in time and space, and sound of another rate: all sizes follow."""
    config = json.loads(json.dumps(CONFIG))
    config["vae"] |= {
        "encoder_blocks": [["compress_all_res", {}], ["compress_all_res", {}]],
        "decoder_blocks": [["compress_all", {}], ["compress_all", {}]],
    }
    config["audio_vae"]["model"]["params"]["sampling_rate"] = 48_000
    config["audio_vae"]["preprocessing"]["stft"]["hop_length"] = 240
    layout = Layout.from_metadata(config)
    assert (layout.frames_per_latent, layout.pixels_per_latent) == (4, 16)
    assert layout.grid(9, 32, 64) == (3, 2, 4) and layout.is_legal(5) and not layout.is_legal(6)
    assert layout.audio_latent_frames(2.0) == 100
    frames, rows, _ = layout.video_positions((3, 2, 1), 4.0)
    np.testing.assert_array_equal(frames[::2], [[0, 0.25], [0.25, 1.25], [1.25, 2.25]])
    np.testing.assert_array_equal(rows[:2], [[0, 16], [16, 32]])
    np.testing.assert_allclose(layout.audio_positions(2)[0], [[0, 0.005], [0.005, 0.025]])


def test_halves_of_the_vae_must_agree():
    vae = CONFIG["vae"] | {"encoder_blocks": [["compress_all_res", {}]]}
    with pytest.raises(InputError, match=r"decoder_blocks: got a scale of .* \(2, 8, 8\)"):
        Layout.from_metadata(CONFIG | {"vae": vae})
