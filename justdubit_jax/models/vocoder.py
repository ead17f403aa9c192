"""Vocoder of LTX-2.0: stereo log-mel to a waveform, a HiFi-GAN generator.

Letters in shape annotations beside those of layers.py: m mel bins, n samples.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/vocoder.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import Frozen

_MEL_CHANNELS = 2 * 64  # stereo, 64 bins; the reference has no key for it
_SLOPE = 0.1  # of the leaky ReLUs, but for the last
_LAST_SLOPE = 0.01

# Options that no LTX-2.0 checkpoint changes: the reference's value where the key is absent, and the
# only value supported here.
_FIXED_OPTIONS = {
    "resblock": (None, "1"),
    "stereo": (None, True),
    "use_tanh_at_final": (True, True),
    "use_bias_at_final": (True, True),
}


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the generator; one mel frame becomes prod(upsample_rates) samples."""

    channels: int  # before the first upsampling; every upsampling halves them
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    res_kernels: tuple[int, ...]  # of the residual blocks that run side by side
    res_dilations: tuple[tuple[int, ...], ...]  # of each one's convolutions
    output_sample_rate: int  # Hz

    @classmethod
    def from_metadata(cls, config: dict) -> "VocoderConfig":
        """Read a checkpoint's `config`; raises InputError for an unsupported option."""
        options = config.get("vocoder", {})
        if "bwe" in options:
            raise InputError(
                "vocoder.bwe: got bandwidth extension, expected none: "
                "LTX-2.3 vocoder not supported yet"
            )
        for key, (default, supported) in _FIXED_OPTIONS.items():
            if (got := options.get(key, default)) != supported:
                raise InputError(f"vocoder.{key}: got {got!r}, expected {supported!r}")
        dilations = options.get("resblock_dilation_sizes", [[1, 3, 5]] * 3)
        return cls(
            channels=options.get("upsample_initial_channel", 1024),
            upsample_rates=tuple(options.get("upsample_rates", [6, 5, 2, 2, 2])),
            upsample_kernels=tuple(options.get("upsample_kernel_sizes", [16, 15, 8, 4, 4])),
            res_kernels=tuple(options.get("resblock_kernel_sizes", [3, 7, 11])),
            res_dilations=tuple(map(tuple, dilations)),
            output_sample_rate=options.get("output_sampling_rate", 24000),
        )


class Vocoder(nnx.Module):
    """Log-mel to a waveform in -1..1 at `output_sample_rate`.

    After each upsampling, blocks of several kernel sizes see the same input; their mean goes on.
    """

    def __init__(self, config: VocoderConfig):
        widths = [config.channels >> i for i in range(len(config.upsample_rates) + 1)]
        sizes = zip(config.upsample_kernels, config.upsample_rates, strict=True)
        kinds = list(zip(config.res_kernels, config.res_dilations, strict=True))
        self.output_sample_rate = config.output_sample_rate
        self.conv_pre = Conv(_MEL_CHANNELS, widths[0], kernel=7)
        self.ups = nnx.List([Upsample(widths[i], widths[i + 1], *s) for i, s in enumerate(sizes)])
        self.resblocks = nnx.List([ResBlock(width, *k) for width in widths[1:] for k in kinds])
        self.conv_post = Conv(widths[-1], 2, kernel=7)

    def __call__(self, log_mel: Float[Array, "b c t m"]) -> Float[Array, "b c n"]:
        x = self.conv_pre(rearrange(log_mel, "b c t m -> b (c m) t"))
        side_by_side = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(jax.nn.leaky_relu(x, _SLOPE))
            blocks = self.resblocks[i * side_by_side : (i + 1) * side_by_side]
            x = sum(block(x) for block in blocks) / side_by_side
        return jnp.tanh(self.conv_post(jax.nn.leaky_relu(x, _LAST_SLOPE)))


class Conv(nnx.Module):
    """A convolution over time that keeps the length."""

    def __init__(self, c_in: int, c_out: int, kernel: int, dilation: int = 1):
        self.weight = Frozen(jnp.zeros((c_out, c_in, kernel)))
        self.bias = Frozen(jnp.zeros(c_out))
        self.dilation = dilation

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b d t"]:
        weight = self.weight[...].astype(x.dtype)
        around = self.dilation * (weight.shape[-1] - 1)
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1,),
            padding=[(around // 2, around - around // 2)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NCH", "OIH", "NCH"),
        )
        return y + self.bias[...].astype(x.dtype)[None, :, None]


class Upsample(nnx.Module):
    """A transposed convolution: `rate` samples out for one in, where kernel - rate is even."""

    def __init__(self, c_in: int, c_out: int, kernel: int, rate: int):
        self.weight = Frozen(jnp.zeros((c_in, c_out, kernel)))
        self.bias = Frozen(jnp.zeros(c_out))
        self.rate = rate

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b d u"]:
        # As a convolution: zeros between the samples, and the kernel back to front.
        weight = jnp.flip(self.weight[...].astype(x.dtype), -1)
        kernel = weight.shape[-1]
        edge = kernel - 1 - (kernel - self.rate) // 2
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1,),
            padding=[(edge, edge)],
            lhs_dilation=(self.rate,),
            dimension_numbers=("NCH", "IOH", "NCH"),
        )
        return y + self.bias[...].astype(x.dtype)[None, :, None]


class ResBlock(nnx.Module):
    """Residual pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        self.convs1 = nnx.List([Conv(channels, channels, kernel, d) for d in dilations])
        self.convs2 = nnx.List([Conv(channels, channels, kernel) for _ in dilations])

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b c t"]:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            h = conv1(jax.nn.leaky_relu(x, _SLOPE))
            x = x + conv2(jax.nn.leaky_relu(h, _SLOPE))
        return x
