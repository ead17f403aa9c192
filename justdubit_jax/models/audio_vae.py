"""Audio VAE: log-mel spectrogram to latents and back, four mel frames and four bins to one.

Letters in shape annotations beside those of layers.py: m mel bins, z latent channels, k latent
bins. Convolutions are causal in time: a latent depends on no later mel frame.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import Frozen

Padding = tuple[tuple[int, int], tuple[int, int]]

# Options of `ddconfig` that are the same in every LTX-2 checkpoint: the reference's value where the
# key is absent, and the only value supported here.
_FIXED_OPTIONS = {
    "attn_resolutions": ([8, 16, 32], []),
    "causality_axis": ("height", "height"),
    "double_z": (True, True),
    "downsample_time": (False, False),
    "mid_block_add_attention": (True, False),
    "norm_type": ("pixel", "pixel"),
    "resamp_with_conv": (True, True),
}


@dataclasses.dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of both halves; `channels` is also z_channels times the latent bins."""

    in_channels: int  # of the log-mel: 2, stereo
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]  # width of each resolution, in `channels`
    res_blocks: int  # per resolution; the decoder has one more
    z_channels: int

    @classmethod
    def from_metadata(cls, config: dict) -> "AudioVAEConfig":
        """Read a checkpoint's `config`; raises InputError for an unsupported option."""
        params = config.get("audio_vae", {}).get("model", {}).get("params", {})
        options = params.get("ddconfig", {})
        where = "audio_vae.model.params.ddconfig"
        for key, (default, supported) in _FIXED_OPTIONS.items():
            if (got := options.get(key, default)) != supported:
                raise InputError(f"{where}.{key}: got {got!r}, expected {supported!r}")
        multipliers = tuple(options.get("ch_mult", (1, 2, 4)))
        if len(multipliers) != 3:
            raise InputError(f"{where}.ch_mult: got {list(multipliers)}, expected 3 resolutions")
        return cls(
            in_channels=options.get("in_channels", 2),
            out_channels=options.get("out_ch", 2),
            channels=options.get("ch", 128),
            multipliers=multipliers,
            res_blocks=options.get("num_res_blocks", 2),
            z_channels=options.get("z_channels", 8),
        )

    @property
    def compression(self) -> int:
        """Mel frames, and mel bins, to one of latents: each resolution but the last halves them."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each resolution, finest first."""
        return [self.channels * multiplier for multiplier in self.multipliers]


class AudioEncoder(nnx.Module):
    """Log-mel to the normalised means of the latent distribution; the variances are dropped."""

    def __init__(self, config: AudioVAEConfig):
        widths = config.widths
        narrower = [config.channels, *widths[:-1]]
        self.z_channels = config.z_channels
        self.statistics = Statistics(config.channels)
        self.conv_in = CausalConv(config.in_channels, config.channels)
        self.down = nnx.List(
            [
                DownStage(c_in, c_out, config.res_blocks, downsample=level < len(widths) - 1)
                for level, (c_in, c_out) in enumerate(zip(narrower, widths, strict=True))
            ]
        )
        self.mid = MidBlock(widths[-1])
        self.conv_out = CausalConv(widths[-1], 2 * config.z_channels)

    def __call__(self, log_mel: Float[Array, "b c t m"]) -> Float[Array, "b z (t+3)//4 m//4"]:
        x = self.conv_in(log_mel)
        for stage in self.down:
            x = stage(x)
        x = self.conv_out(_norm_silu(self.mid(x)))
        return self.statistics.normalize(x[:, : self.z_channels])


class AudioDecoder(nnx.Module):
    """Normalised latents to log-mel."""

    def __init__(self, config: AudioVAEConfig):
        widths = config.widths
        wider = [*widths[1:], widths[-1]]
        self.statistics = Statistics(config.channels)
        self.conv_in = CausalConv(config.z_channels, widths[-1])
        self.mid = MidBlock(widths[-1])
        self.up = nnx.List(
            [
                UpStage(c_in, c_out, config.res_blocks + 1, upsample=level > 0)
                for level, (c_in, c_out) in enumerate(zip(wider, widths, strict=True))
            ]
        )
        self.conv_out = CausalConv(widths[0], config.out_channels)

    def __call__(self, latents: Float[Array, "b z t k"]) -> Float[Array, "b c 4*t-3 4*k"]:
        x = self.mid(self.conv_in(self.statistics.denormalize(latents)))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(_norm_silu(x))


class Statistics(nnx.Module):
    """Mean and standard deviation of each latent channel and bin, flat with the bin fastest."""

    def __init__(self, size: int):
        self.mean = Frozen(jnp.zeros(size))
        self.std = Frozen(jnp.zeros(size))

    def normalize(self, x: Float[Array, "b z t k"]) -> Float[Array, "b z t k"]:
        mean, std = self._per_bin(x)
        return ((x.astype(jnp.float32) - mean) / std).astype(x.dtype)

    def denormalize(self, x: Float[Array, "b z t k"]) -> Float[Array, "b z t k"]:
        mean, std = self._per_bin(x)
        return (x.astype(jnp.float32) * std + mean).astype(x.dtype)

    def _per_bin(self, x: Array) -> tuple[Array, Array]:
        _, z, _, k = x.shape
        flat = (self.mean[...].astype(jnp.float32), self.std[...].astype(jnp.float32))
        mean, std = (rearrange(values, "(z k) -> 1 z 1 k", z=z, k=k) for values in flat)
        return mean, std


class Conv(nnx.Module):
    """A 3x3 (or `kernel`²) convolution over time and bins, zero-padded."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, padding: Padding):
        self.weight = Frozen(jnp.zeros((c_out, c_in, kernel, kernel)))
        self.bias = Frozen(jnp.zeros(c_out))
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b d u k"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )
        return y + self.bias[...].astype(x.dtype)[None, :, None, None]


class CausalConv(nnx.Module):
    """A convolution of odd kernel that keeps the size and looks back in time only."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3):
        padding = ((kernel - 1, 0), (kernel // 2, kernel // 2))
        self.conv = Conv(c_in, c_out, kernel, stride=1, padding=padding)

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b d t m"]:
        return self.conv(x)


class ResnetBlock(nnx.Module):
    """x + conv2(conv1(x)), each behind a norm and SiLU; x projected where the width changes."""

    def __init__(self, c_in: int, c_out: int):
        self.conv1 = CausalConv(c_in, c_out)
        self.conv2 = CausalConv(c_out, c_out)
        self.nin_shortcut = None if c_in == c_out else CausalConv(c_in, c_out, kernel=1)

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b d t m"]:
        h = self.conv1(_norm_silu(x))
        h = self.conv2(_norm_silu(h))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class MidBlock(nnx.Module):
    """Two residual blocks at the coarsest resolution."""

    def __init__(self, channels: int):
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b c t m"]:
        return self.block_2(self.block_1(x))


class DownStage(nnx.Module):
    """One resolution of the encoder."""

    def __init__(self, c_in: int, c_out: int, blocks: int, downsample: bool):
        self.block = nnx.List(_residual_blocks(c_in, c_out, blocks))
        self.downsample = Downsample(c_out) if downsample else None

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b d u k"]:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpStage(nnx.Module):
    """One resolution of the decoder."""

    def __init__(self, c_in: int, c_out: int, blocks: int, upsample: bool):
        self.block = nnx.List(_residual_blocks(c_in, c_out, blocks))
        self.upsample = Upsample(c_out) if upsample else None

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b d u k"]:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Downsample(nnx.Module):
    """Halve both axes, an odd number of time steps rounded up."""

    def __init__(self, channels: int):
        self.conv = Conv(channels, channels, kernel=3, stride=2, padding=((2, 0), (0, 1)))

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b c (t+1)//2 m//2"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Double both axes; the first time step, which is half padding, goes: 2 t - 1 remain."""

    def __init__(self, channels: int):
        self.conv = CausalConv(channels, channels)

    def __call__(self, x: Float[Array, "b c t m"]) -> Float[Array, "b c 2*t-1 2*m"]:
        return self.conv(repeat(x, "b c t m -> b c (t i) (m j)", i=2, j=2))[:, :, 1:]


def _residual_blocks(c_in: int, c_out: int, blocks: int) -> list[ResnetBlock]:
    return [ResnetBlock(c_in if i == 0 else c_out, c_out) for i in range(blocks)]


def _norm_silu(x: Array) -> Array:
    """SiLU of x / rms(x) over the channels; the norm in float32."""
    x32 = x.astype(jnp.float32)
    rms = jnp.sqrt(jnp.mean(x32**2, axis=1, keepdims=True) + 1e-6)
    return jax.nn.silu((x32 / rms).astype(x.dtype))
