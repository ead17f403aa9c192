"""The reference's resampling: torchaudio's default, written out as its definition."""

import math

import numpy as np
import pytest

from justdubit_jax.clips.resample import resample

RATES = [(48_000, 16_000), (44_100, 16_000), (16_000, 24_000), (11_025, 16_000), (96_000, 16_000)]


def by_definition(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Every sample as a sum over all others: a sinc of 6 zero crossings, rolloff 0.99, Hann."""
    lowest = 0.99 * min(rate, to)
    count = math.ceil(wave.shape[1] * to / rate)
    seconds = np.arange(count)[:, None] / to - np.arange(wave.shape[1])[None] / rate
    t = seconds * lowest
    kernel = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * (np.abs(t) < 6) * lowest / rate
    return wave @ kernel.T


@pytest.mark.parametrize(("rate", "to"), RATES)
@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_it_is_what_it_says(rate, to, count):
    wave = np.random.default_rng(0).normal(0, 0.3, (2, count)).astype(np.float32)
    got = resample(wave, rate, to)
    assert got.shape == (2, math.ceil(count * to / rate)) and got.dtype == np.float32
    np.testing.assert_allclose(got, by_definition(wave, rate, to), atol=1e-6)


@pytest.mark.parametrize("rate", [44_099, 44_100, 48_000])
def test_a_tone_stays_where_it_was(rate):
    """Also at a rate that has no divisor in common with the new one."""
    tone = np.sin(2 * np.pi * 440 * np.arange(rate // 4) / rate)[None].astype(np.float32)
    got = resample(tone, rate, 16_000)
    want = np.sin(2 * np.pi * 440 * np.arange(got.shape[1]) / 16_000)[None]
    np.testing.assert_allclose(got[:, 50:-50], want[:, 50:-50], atol=3e-3)


def test_the_same_rate_changes_nothing():
    wave = np.random.default_rng(0).normal(size=(1, 99)).astype(np.float32)
    np.testing.assert_array_equal(resample(wave, 16_000, 16_000), wave)
