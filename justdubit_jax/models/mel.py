"""Waveform to log-mel spectrogram: what the audio VAE encodes.

Letters in shape annotations beside those of layers.py: n samples, m mel bins. Everything is
float32, whatever the models run in: the logarithm of quiet bins has no digits to spare.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/ops.py, which leaves the
transform to torchaudio.transforms.MelSpectrogram.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError

_FLOOR = 1e-5  # of the mel magnitude, before the logarithm


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Sizes of the transform. The band is 0 to sample_rate / 2, the window n_fft long."""

    sample_rate: int  # Hz
    n_fft: int  # samples
    hop: int  # samples between two frames
    bins: int

    @classmethod
    def from_metadata(cls, config: dict) -> "MelConfig":
        """Read a checkpoint's `config`; win_length, mel_fmin and mel_fmax are not read upstream."""
        section = config.get("audio_vae", {})
        preprocessing = section.get("preprocessing", {})
        stft, mel = preprocessing.get("stft", {}), preprocessing.get("mel", {})
        params = section.get("model", {}).get("params", {})
        bins = (
            params.get("ddconfig", {}).get("mel_bins")
            or mel.get("n_mel_channels")
            or section.get("variables", {}).get("mel_bins")
        )
        if not bins:
            raise InputError(
                f"audio_vae.model.params.ddconfig.mel_bins: got {bins}, expected a number of bins"
            )
        return cls(
            sample_rate=params.get("sampling_rate", 16000),
            n_fft=stft.get("filter_length", 1024),
            hop=stft.get("hop_length", 160),
            bins=bins,
        )

    def frames(self, samples: int) -> int:
        """Mel frames of a waveform: 485 for 121 video frames at 25 per second (77,440 samples)."""
        return 1 + samples // self.hop


def log_mel(waveform: Float[Array, "b c n"], config: MelConfig) -> Float[Array, "b c t m"]:
    """Natural logarithm of the mel magnitudes of a waveform at `config.sample_rate`, float32.

    Frame i is centred on sample i * hop; the edges are reflected. At the published sizes a
    waveform of 121/25 s gives 485 frames, which the audio VAE encodes to 122 latents. Raises
    ValueError for fewer than n_fft / 2 + 1 samples, which cannot be reflected.
    """
    half, samples = config.n_fft // 2, waveform.shape[-1]
    if samples <= half:
        raise ValueError(f"waveform: got {samples} samples, expected at least {half + 1}")
    edges = ((0, 0), (0, 0), (half, half))
    padded = jnp.pad(waveform.astype(jnp.float32), edges, mode="reflect")
    starts = jnp.arange(config.frames(samples)) * config.hop
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, padded, slice_size=config.n_fft, axis=-1)
    frames = jax.vmap(cut, out_axes=-2)(starts)
    magnitude = jnp.abs(jnp.fft.rfft(frames * window(config.n_fft)[None, None, None]))
    mel = jnp.einsum("bctf,mf->bctm", magnitude, filterbank(config), precision="highest")
    return jnp.log(jnp.maximum(mel, _FLOOR))


def window(size: int) -> Float[np.ndarray, " n"]:
    """The periodic Hann window."""
    return np.hanning(size + 1)[:-1].astype(np.float32)


@functools.cache
def filterbank(config: MelConfig) -> Float[np.ndarray, "m f"]:
    """Triangles of unit area (in Hz) between points evenly spaced on Slaney's mel scale.

    f runs over the n_fft / 2 + 1 frequencies of the real Fourier transform.
    """
    nyquist = config.sample_rate / 2
    frequencies = np.linspace(0, nyquist, config.n_fft // 2 + 1)
    points = _mel_to_hz(np.linspace(0, _hz_to_mel(nyquist), config.bins + 2))
    left, centre, right = (points[i : i + config.bins, None] for i in range(3))
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (right - left)).astype(np.float32)


# Slaney's scale (Auditory Toolbox, 1998): 3 mel per 200 Hz up to 1 kHz, from there 27 mel for
# every factor of 6.4.
_HZ_PER_MEL = 200 / 3
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _HZ_PER_MEL, above)
