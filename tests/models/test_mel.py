import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import error, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models import mel

PUBLISHED = mel.MelConfig(sample_rate=16000, n_fft=1024, hop=160, bins=64)
QUIET = math.log(1e-5)

log_mel = jax.jit(mel.log_mel, static_argnums=1)


def shape(samples: int) -> tuple[int, ...]:
    waveform = jax.ShapeDtypeStruct((1, 2, samples), jnp.float32)
    return jax.eval_shape(lambda x: mel.log_mel(x, PUBLISHED), waveform).shape


def test_log_mel_matches_the_reference():
    golden, _ = load_golden("audio_mel")
    got = log_mel(golden["input.waveform_16k"], PUBLISHED)
    # 30 times the reference's own float32 error is 2e-6; 2e-5 is the least that is asked.
    assert error(got, golden["expect.log_mel_16k"]) < 2e-5


def test_window_and_filterbank_match_the_reference():
    golden, _ = load_golden("audio_mel")
    bank = mel.filterbank(PUBLISHED)
    expected = {name: golden[f"expect.mel_filterbank.{name}"] for name in ("row_sum", "row_max")}
    # The reference computes both in float32, where a slope of a 40 Hz triangle loses digits.
    assert error(mel.window(1024), golden["expect.window"]) < 1e-6
    assert error(bank.sum(0), golden["expect.mel_filterbank.column_sum"]) < 1e-5
    assert error(bank.sum(1), expected["row_sum"]) < 1e-5
    assert error(bank.max(1), expected["row_max"]) < 1e-5
    np.testing.assert_array_equal(bank.argmax(1), golden["expect.mel_filterbank.row_argmax"])


def test_frames_and_float32():
    assert PUBLISHED.frames(121 * 16000 // 25) == 485
    for samples in (513, 640, 799, 800, 801, 77440):
        assert shape(samples) == (1, 2, PUBLISHED.frames(samples), 64)
    assert mel.log_mel(jnp.zeros((1, 1, 600), jnp.bfloat16), PUBLISHED).dtype == jnp.float32


def test_too_short_a_waveform_is_refused():
    with pytest.raises(ValueError, match="got 512 samples, expected at least 513"):
        shape(512)


def test_a_tone_peaks_in_its_bin_and_silence_is_the_floor():
    time = np.arange(4000) / 16000
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    waveform = jnp.asarray(np.stack([np.stack([tone, 0 * tone]), np.stack([2 * tone, 0 * tone])]))
    got = np.asarray(log_mel(waveform, PUBLISHED))
    centres = mel.filterbank(PUBLISHED) @ np.linspace(0, 8000, 513)
    centres /= mel.filterbank(PUBLISHED).sum(1)
    inner = got[0, 0, 4:-4]  # frames that do not reach over the edge
    assert set(inner.argmax(-1)) == {np.abs(centres - 1000).argmin()}
    np.testing.assert_allclose((got[1] - got[0])[0, 4:-4].max(-1), math.log(2), rtol=1e-5)
    np.testing.assert_array_equal(got[:, 1], np.float32(QUIET))


def test_config_from_metadata():
    preprocessing = {
        "stft": {"filter_length": 512, "hop_length": 128},
        "mel": {"n_mel_channels": 40},
    }
    section = {"preprocessing": preprocessing, "model": {"params": {"sampling_rate": 24000}}}
    read = mel.MelConfig.from_metadata({"audio_vae": section})
    assert read == mel.MelConfig(sample_rate=24000, n_fft=512, hop=128, bins=40)
    sizes = {"model": {"params": {"ddconfig": {"mel_bins": 64}}}}
    assert mel.MelConfig.from_metadata({"audio_vae": sizes}) == PUBLISHED
    assert mel.MelConfig.from_metadata({"audio_vae": section | sizes}).bins == 64
    with pytest.raises(InputError, match="mel_bins: got None"):
        mel.MelConfig.from_metadata({})
