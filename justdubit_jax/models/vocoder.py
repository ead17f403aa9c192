"""Stereo log-mel to a waveform: a generator like HiFi-GAN's (LTX-2.0) or BigVGAN's (LTX-2.3).

Letters in shape annotations beside those of layers.py: m mel bins, n samples.
Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/audio_vae/vocoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.snake import Snake

_MEL_CHANNELS = 2 * 64  # stereo, 64 bins; the reference has no key for it
_SLOPE = 0.1  # of the leaky ReLUs, but for the last
_LAST_SLOPE = 0.01

Final = Literal["tanh", "clip", "none"]
_FINALS: dict[Final, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "none": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the generator; one mel frame becomes prod(upsample_rates) samples."""

    channels: int  # before the first upsampling; every upsampling halves them
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    res_kernels: tuple[int, ...]  # of the residual blocks that run side by side
    res_dilations: tuple[tuple[int, ...], ...]  # of each one's convolutions
    snake: bool  # else leaky ReLU, before the upsamplings too
    final: Final
    final_bias: bool
    output_sample_rate: int  # Hz

    @classmethod
    def from_section(cls, options: dict, where: str, *, snake: bool = False) -> "VocoderConfig":
        """Read a generator's part of a checkpoint's `config`, which stands at `where`.

        Raises InputError for an option that a generator with these activations does not have.
        """
        kind = {"resblock": "AMP1", "activation": "snakebeta"} if snake else {"resblock": "1"}
        for key, supported in {**kind, "stereo": True}.items():
            if (got := options.get(key)) != supported:
                raise InputError(f"{where}.{key}: got {got!r}, expected {supported!r}")
        dilations = options.get("resblock_dilation_sizes", [[1, 3, 5]] * 3)
        return cls(
            channels=options.get("upsample_initial_channel", 1024),
            upsample_rates=tuple(options.get("upsample_rates", [6, 5, 2, 2, 2])),
            upsample_kernels=tuple(options.get("upsample_kernel_sizes", [16, 15, 8, 4, 4])),
            res_kernels=tuple(options.get("resblock_kernel_sizes", [3, 7, 11])),
            res_dilations=tuple(map(tuple, dilations)),
            snake=snake,
            final="tanh" if options.get("use_tanh_at_final", True) else "clip",
            final_bias=options.get("use_bias_at_final", True),
            output_sample_rate=options.get("output_sampling_rate", 24000),
        )


class LeakyReLU(nnx.Module):
    """x where it is positive, `slope` x elsewhere; without weights."""

    def __init__(self, slope: float = _SLOPE):
        self.slope = slope

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b c t"]:
        return jax.nn.leaky_relu(x, self.slope)


class Vocoder(nnx.Module):
    """Log-mel to a waveform at `output_sample_rate`: in -1..1, unless `final` is none.

    After each upsampling, blocks of several kernel sizes see the same input; their mean goes on.
    """

    def __init__(self, config: VocoderConfig):
        widths = [config.channels >> i for i in range(len(config.upsample_rates) + 1)]
        sizes = zip(config.upsample_kernels, config.upsample_rates, strict=True)
        kinds = list(zip(config.res_kernels, config.res_dilations, strict=True))
        self.output_sample_rate = config.output_sample_rate
        self.conv_pre = Conv(_MEL_CHANNELS, widths[0], kernel=7)
        self.act_up = None if config.snake else LeakyReLU()
        self.ups = nnx.List([Upsample(widths[i], widths[i + 1], *s) for i, s in enumerate(sizes)])
        self.resblocks = nnx.List(
            [ResBlock(width, *k, snake=config.snake) for width in widths[1:] for k in kinds]
        )
        self.act_post = Snake(widths[-1]) if config.snake else LeakyReLU(_LAST_SLOPE)
        self.conv_post = Conv(widths[-1], 2, kernel=7, bias=config.final_bias)
        self.final: Final = config.final

    def __call__(self, log_mel: Float[Array, "b c t m"]) -> Float[Array, "b c n"]:
        x = self.conv_pre(rearrange(log_mel, "b c t m -> b (c m) t"))
        side_by_side = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(x if self.act_up is None else self.act_up(x))
            blocks = self.resblocks[i * side_by_side : (i + 1) * side_by_side]
            x = functools.reduce(jnp.add, (block(x) for block in blocks)) / side_by_side
        return _FINALS[self.final](self.conv_post(self.act_post(x)))


class Conv(nnx.Module):
    """A convolution over time that keeps the length."""

    def __init__(self, c_in: int, c_out: int, kernel: int, dilation: int = 1, bias: bool = True):
        self.weight = Frozen(jnp.zeros((c_out, c_in, kernel)))
        self.bias = Frozen(jnp.zeros(c_out)) if bias else None
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
        if self.bias is None:
            return y
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
    """Residual pairs of convolutions, the first of each pair dilated, each behind its activation.

    Snakes are learned, so every convolution has its own.
    """

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], *, snake: bool = False
    ):
        self.convs1 = nnx.List([Conv(channels, channels, kernel, d) for d in dilations])
        self.convs2 = nnx.List([Conv(channels, channels, kernel) for _ in dilations])
        act = functools.partial(Snake, channels) if snake else LeakyReLU
        self.acts1 = nnx.List([act() for _ in dilations])
        self.acts2 = nnx.List([act() for _ in dilations])

    def __call__(self, x: Float[Array, "b c t"]) -> Float[Array, "b c t"]:
        layers = zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True)
        for act1, conv1, act2, conv2 in layers:
            x = x + conv2(act2(conv1(act1(x))))
        return x
