"""LTX-2.3's vocoder: a waveform at 16 kHz, and what is missing of it at 48 kHz.

A first generator makes sound of the log-mel. Its own mel spectrum goes through a second one, which
makes the difference between that sound, resampled, and the sound of three times the sample rate.
Letters in shape annotations are those of vocoder.py.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/vocoder.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.snake import upsampled
from justdubit_jax.models.vocoder import Vocoder, VocoderConfig

_FLOOR = 1e-5  # of the mel magnitude, before the logarithm
# The resampler is torchaudio's: a sinc of six zero crossings to each side, 1 % below Nyquist.
_CROSSINGS = 6
_ROLLOFF = 0.99
_WIDTH = math.ceil(_CROSSINGS / _ROLLOFF)  # samples to each side


@dataclasses.dataclass(frozen=True)
class BandwidthConfig:
    """Both generators, and the spectrum between them; the window is as long as n_fft."""

    low: VocoderConfig
    high: VocoderConfig
    n_fft: int  # samples
    hop: int  # samples between two frames
    bins: int

    @classmethod
    def from_metadata(cls, config: dict) -> "BandwidthConfig":
        """Read a checkpoint's `config`; raises InputError for an unsupported or missing option."""
        section = config["vocoder"]
        high = section["bwe"]
        wanted = ("input_sampling_rate", "output_sampling_rate", "n_fft", "hop_length", "num_mels")
        if missing := [key for key in wanted if key not in high]:
            raise InputError(f"vocoder.bwe.{missing[0]}: missing")
        rates = high["input_sampling_rate"], high["output_sampling_rate"]
        if rates[1] % rates[0]:
            raise InputError(
                f"vocoder.bwe.output_sampling_rate: got {rates[1]}, expected a multiple of the "
                f"input_sampling_rate {rates[0]}"
            )
        low = section.get("vocoder", {}) | {"output_sampling_rate": rates[0]}
        residual = VocoderConfig.from_section(high, "vocoder.bwe", snake=True)
        return cls(
            low=VocoderConfig.from_section(low, "vocoder.vocoder", snake=True),
            high=dataclasses.replace(residual, final="none"),
            n_fft=high["n_fft"],
            hop=high["hop_length"],
            bins=high["num_mels"],
        )


class BandwidthVocoder(nnx.Module):
    """Log-mel to a waveform in -1..1 at `output_sample_rate`."""

    def __init__(self, config: BandwidthConfig):
        self.output_sample_rate = config.high.output_sample_rate
        self.ratio = self.output_sample_rate // config.low.output_sample_rate
        self.vocoder = Vocoder(config.low)
        self.bwe_generator = Vocoder(config.high)
        self.mel_stft = CausalMel(config)

    def __call__(self, log_mel: Float[Array, "b c t m"]) -> Float[Array, "b c n"]:
        """In float32 whatever comes in: errors add up over a hundred convolutions."""
        low = self.vocoder(log_mel.astype(jnp.float32))
        length = self.ratio * low.shape[-1]
        low = jnp.pad(low, ((0, 0), (0, 0), (0, -low.shape[-1] % self.mel_stft.hop)))
        residual = self.bwe_generator(self.mel_stft(low))
        taps = jnp.asarray(resampling_filter(self.ratio))
        skip = upsampled(low, taps, self.ratio, rim=_WIDTH)
        return jnp.clip(residual + skip, -1, 1)[..., :length].astype(log_mel.dtype)


class CausalMel(nnx.Module):
    """Natural logarithm of mel magnitudes, of which frame i ends with sample (i + 1) * hop.

    Fourier rows (real parts, then imaginary ones; with their window) and mel triangles are the
    checkpoint's, rounded as it was trained with them.
    """

    def __init__(self, config: BandwidthConfig):
        frequencies = config.n_fft // 2 + 1
        self.hop = config.hop
        self.mel_basis = Frozen(jnp.zeros((config.bins, frequencies)))
        basis = Frozen(jnp.zeros((2 * frequencies, 1, config.n_fft)))
        self.stft_fn = nnx.Dict({"forward_basis": basis})

    def __call__(self, waveform: Float[Array, "b c n"]) -> Float[Array, "b c t m"]:
        basis = self.stft_fn["forward_basis"][...].astype(waveform.dtype)
        spectrum = jax.lax.conv_general_dilated(
            rearrange(waveform, "b c n -> (b c) 1 n"),
            basis,
            window_strides=(self.hop,),
            padding=[(max(0, basis.shape[-1] - self.hop), 0)],
            dimension_numbers=("NCH", "OIH", "NCH"),
        )
        real, imaginary = jnp.split(spectrum, 2, 1)
        magnitude = jnp.sqrt(real**2 + imaginary**2)
        mel = jnp.einsum("xft,mf->xtm", magnitude, self.mel_basis[...].astype(waveform.dtype))
        return rearrange(jnp.log(jnp.maximum(mel, _FLOOR)), "(b c) t m -> b c t m", b=len(waveform))


def resampling_filter(ratio: int) -> Float[np.ndarray, " k"]:
    """A sinc under a squared cosine, for `ratio` samples in place of one."""
    time = (np.arange(2 * _WIDTH * ratio + 1) / ratio - _WIDTH) * _ROLLOFF
    window = np.cos(np.clip(time, -_CROSSINGS, _CROSSINGS) * np.pi / _CROSSINGS / 2) ** 2
    return (np.sinc(time) * window * _ROLLOFF / ratio).astype(np.float32)


def vocoder(config: dict) -> Vocoder | BandwidthVocoder:
    """The vocoder that a checkpoint's `config` describes."""
    section = config.get("vocoder", {})
    if "bwe" in section:
        return BandwidthVocoder(BandwidthConfig.from_metadata(config))
    return Vocoder(VocoderConfig.from_section(section, "vocoder"))
