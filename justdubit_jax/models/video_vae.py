"""The video VAE of LTX-2: frames of pixels to latents, 8 x 32 x 32 to one, and back.

Both halves are a list of blocks that the checkpoint's metadata spells out, between a patchify of
4 x 4 pixels and one convolution at each end. The first frame is a latent frame of its own, so
8 k + 1 frames make k + 1. Inside, tensors are [b, f, y, x, c]; at the boundary [b, c, f, y, x].
Source of names and formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/video_vae.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import Frozen, rms_norm

Padding = Literal["zeros", "reflect"]
Stride = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ResBlocksConfig:
    """A run of residual blocks (`res_x`)."""

    layers: int


@dataclasses.dataclass(frozen=True)
class ResampleConfig:
    """One change of resolution (`compress_*`): down in the encoder, up in the decoder.

    `stride` is frames, rows, columns; `multiplier` is the gain (encoder) or the loss (decoder) of
    channels; `residual` adds the resampled input in the decoder, which the encoder always does.
    """

    stride: Stride
    multiplier: int
    residual: bool


BlockConfig = ResBlocksConfig | ResampleConfig


@dataclasses.dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes of the encoder; `channels` are of the video, `blocks` from video to latents."""

    channels: int
    latent_channels: int
    patch_size: int
    padding: Padding
    blocks: tuple[BlockConfig, ...]

    @classmethod
    def from_metadata(cls, config: dict[str, Any]) -> "VideoEncoderConfig":
        """Read the `vae` section of a checkpoint's config; InputError for what is not supported."""
        vae = _section(config)
        _supported(vae, "latent_log_var", "uniform", ("uniform",))
        return cls(
            channels=vae.get("in_channels", 3),
            latent_channels=vae.get("latent_channels", 128),
            patch_size=vae.get("patch_size", 4),
            padding=_supported(vae, "spatial_padding_mode", "zeros", ("zeros", "reflect")),
            blocks=_blocks(vae, "encoder_blocks", _DOWN, default_multiplier=2),
        )

    @property
    def compression(self) -> Stride:
        """Frames, rows and columns of the video to one of latents."""
        return _compression(self.patch_size, self.blocks)


@dataclasses.dataclass(frozen=True)
class VideoDecoderConfig:
    """Sizes of the decoder; `blocks` from latents to video, `causal` hides later frames."""

    channels: int
    latent_channels: int
    base_channels: int
    patch_size: int
    padding: Padding
    causal: bool
    blocks: tuple[BlockConfig, ...]

    @classmethod
    def from_metadata(cls, config: dict[str, Any]) -> "VideoDecoderConfig":
        """Read the `vae` section of a checkpoint's config; InputError for what is not supported."""
        vae = _section(config)
        _supported(vae, "timestep_conditioning", True, (False,))
        return cls(
            channels=vae.get("out_channels", 3),
            latent_channels=vae.get("latent_channels", 128),
            base_channels=vae.get("decoder_base_channels", 128),
            patch_size=vae.get("patch_size", 4),
            padding=_supported(vae, "spatial_padding_mode", "reflect", ("zeros", "reflect")),
            causal=_supported(vae, "causal_decoder", False, (False, True)),
            # The metadata lists the decoder from video to latents.
            blocks=_blocks(vae, "decoder_blocks", _UP, default_multiplier=1)[::-1],
        )

    @property
    def compression(self) -> Stride:
        """Frames, rows and columns of the video to one of latents."""
        return _compression(self.patch_size, self.blocks)


_UP: dict[str, Stride] = {
    "compress_all": (2, 2, 2),
    "compress_space": (1, 2, 2),
    "compress_time": (2, 1, 1),
}
_DOWN: dict[str, Stride] = {f"{name}_res": stride for name, stride in _UP.items()}


def _section(config: dict[str, Any]) -> dict[str, Any]:
    vae = config.get("vae", {})
    _supported(vae, "dims", 3, (3,))
    _supported(vae, "norm_layer", "pixel_norm", ("pixel_norm",))
    return vae


def _supported(vae: dict[str, Any], key: str, default: Any, values: tuple[Any, ...]) -> Any:
    got = vae.get(key, default)
    if got not in values:
        expected = " or ".join(map(repr, values))
        absent = "" if key in vae else " (the key's default)"
        raise InputError(f"vae.{key}: got {got!r}{absent}, expected {expected}")
    return got


def _blocks(
    vae: dict[str, Any], key: str, strides: dict[str, Stride], default_multiplier: int
) -> tuple[BlockConfig, ...]:
    blocks: list[BlockConfig] = []
    for name, params in vae.get(key, []):
        params = {"num_layers": params} if isinstance(params, int) else params
        if params.get("inject_noise", False):
            raise InputError(f"vae.{key}: got {name} with inject_noise true, expected false")
        if name in strides:
            multiplier = params.get("multiplier", default_multiplier)
            # The reference reads `residual` in this one kind of block and ignores it in the others.
            residual = name == "compress_all" and bool(params.get("residual", False))
            blocks.append(ResampleConfig(strides[name], multiplier, residual))
        elif name == "res_x" and "num_layers" in params:
            blocks.append(ResBlocksConfig(params["num_layers"]))
        else:
            known = ", ".join(["res_x with num_layers", *strides])
            raise InputError(f"vae.{key}: got block {[name, params]}, expected {known}")
    return tuple(blocks)


def _compression(patch_size: int, blocks: tuple[BlockConfig, ...]) -> Stride:
    strides = [block.stride for block in blocks if isinstance(block, ResampleConfig)]
    frames, rows, columns = (math.prod(axis) for axis in zip((1, 1, 1), *strides, strict=True))
    return frames, rows * patch_size, columns * patch_size


class Statistics(nnx.Module):
    """Mean and standard deviation of every latent channel over the VAE's training data."""

    def __init__(self, channels: int):
        self.mean = Frozen(jnp.zeros(channels))
        self.std = Frozen(jnp.zeros(channels))

    def normalize(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        mean, std = self._like(x)
        return (x - mean) / std

    def denormalize(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        mean, std = self._like(x)
        return x * std + mean

    def _like(self, x: Array) -> tuple[Array, Array]:
        mean, std = (
            jax.lax.broadcast_to_rank(value[...].astype(x.dtype), x.ndim)
            for value in (self.mean, self.std)
        )
        return mean, std


class Conv(nnx.Module):
    """3 x 3 x 3 convolution that keeps the size; weight and bias are `conv.weight`, `conv.bias`.

    In time the end frames are repeated: the first one twice if causal, else one at each end.
    """

    def __init__(self, c_in: int, c_out: int, padding: Padding, causal: bool):
        self.conv = _Weights(c_in, c_out)
        self.padding = padding
        self.causal = causal

    def __call__(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f y x c2"]:
        ends = (2, 0) if self.causal else (1, 1)
        x = jnp.pad(x, ((0, 0), ends, (0, 0), (0, 0), (0, 0)), mode="edge")
        rim = (1, 1)
        if self.padding == "reflect":
            x = jnp.pad(x, ((0, 0), (0, 0), rim, rim, (0, 0)), mode="reflect")
            rim = (0, 0)
        y = jax.lax.conv_general_dilated(
            x,
            self.conv.weight[...].astype(x.dtype),
            window_strides=(1, 1, 1),
            padding=((0, 0), rim, rim),
            dimension_numbers=("NDHWC", "OIDHW", "NDHWC"),
        )
        return y + self.conv.bias[...].astype(x.dtype)[None, None, None, None]


class _Weights(nnx.Module):
    def __init__(self, c_in: int, c_out: int):
        self.weight = Frozen(jnp.zeros((c_out, c_in, 3, 3, 3)))
        self.bias = Frozen(jnp.zeros(c_out))


class ResBlock(nnx.Module):
    """x + conv2(act(conv1(act(x)))) with act = SiLU of the pixel norm."""

    def __init__(self, channels: int, padding: Padding, causal: bool):
        self.conv1 = Conv(channels, channels, padding, causal)
        self.conv2 = Conv(channels, channels, padding, causal)

    def __call__(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f y x c"]:
        return x + self.conv2(_act(self.conv1(_act(x))))


def _act(x: Float[Array, "b f y x c"]) -> Float[Array, "b f y x c"]:
    return jax.nn.silu(rms_norm(x, eps=1e-8))


class ResBlocks(nnx.Module):
    """Residual blocks in a row, `res_blocks.{i}` by name."""

    def __init__(self, channels: int, layers: int, padding: Padding, causal: bool):
        self.res_blocks = nnx.List([ResBlock(channels, padding, causal) for _ in range(layers)])

    def __call__(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f y x c"]:
        for block in self.res_blocks:
            x = block(x)
        return x


class Downsample(nnx.Module):
    """Convolution, then space to depth, plus the mean of the input's cells over channel groups.

    A halving of time first repeats the first frame, so that 2 k + 1 frames become k + 1.
    """

    def __init__(self, c_in: int, config: ResampleConfig, padding: Padding):
        self.c_out = c_in * config.multiplier
        self.conv = Conv(c_in, self.c_out // math.prod(config.stride), padding, causal=True)
        self.stride = config.stride

    def __call__(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f2 y2 x2 c2"]:
        if self.stride[0] == 2:
            x = jnp.concatenate([x[:, :1], x], 1)
        cells = _space_to_depth(x, self.stride)
        skip = reduce(cells, "b f y x (c g) -> b f y x c", "mean", c=self.c_out)
        return _space_to_depth(self.conv(x), self.stride) + skip


class Upsample(nnx.Module):
    """Convolution, then depth to space; a doubling of time drops the first frame again.

    The residual is the input itself, depth to space, its channels repeated to the output's number.
    """

    def __init__(self, c_in: int, config: ResampleConfig, padding: Padding, causal: bool):
        cells = math.prod(config.stride)
        self.conv = Conv(c_in, c_in // config.multiplier * cells, padding, causal)
        self.stride = config.stride
        self.repeats = cells // config.multiplier if config.residual else 0

    def __call__(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f2 y2 x2 c2"]:
        y = _depth_to_space(self.conv(x), self.stride)
        if self.repeats:
            y = y + jnp.tile(_depth_to_space(x, self.stride), self.repeats)
        return y[:, self.stride[0] - 1 :]


def _space_to_depth(x: Float[Array, "b f y x c"], stride: Stride) -> Float[Array, "b f2 y2 x2 c2"]:
    p, q, r = stride
    return rearrange(x, "b (f p) (y q) (x r) c -> b f y x (c p q r)", p=p, q=q, r=r)


def _depth_to_space(x: Float[Array, "b f y x c"], stride: Stride) -> Float[Array, "b f2 y2 x2 c2"]:
    p, q, r = stride
    return rearrange(x, "b f y x (c p q r) -> b (f p) (y q) (x r) c", p=p, q=q, r=r)


class VideoEncoder(nnx.Module):
    """Video in -1..1 to normalised latents (the means; the log-variance is not used)."""

    def __init__(self, config: VideoEncoderConfig):
        padding, channels = config.padding, config.latent_channels
        self.config = config
        self.statistics = Statistics(config.latent_channels)
        self.conv_in = Conv(config.channels * config.patch_size**2, channels, padding, causal=True)
        down_blocks = []
        for block in config.blocks:
            if isinstance(block, ResBlocksConfig):
                down_blocks.append(ResBlocks(channels, block.layers, padding, causal=True))
            else:
                down_blocks.append(Downsample(channels, block, padding))
                channels *= block.multiplier
        self.down_blocks = nnx.List(down_blocks)
        self.conv_out = Conv(channels, config.latent_channels + 1, padding, causal=True)

    def __call__(self, video: Float[Array, "b c f y x"]) -> Float[Array, "b l _g _h _w"]:
        """Encode a clip; frames after the last 8 k + 1 are cropped.

        Raises InputError unless rows and columns are multiples of 32 (see `compression`).
        """
        frames, rows, columns = video.shape[2:]
        in_time, *in_space = self.config.compression
        if rows % in_space[0] or columns % in_space[1]:
            raise InputError(
                f"video: got {rows} rows x {columns} columns, expected multiples of {in_space[0]}"
            )
        video = video[:, :, : frames - (frames - 1) % in_time]
        patch = self.config.patch_size
        # Within a patch the column varies slower than the row, unlike everywhere else.
        x = rearrange(video, "b c f (y q) (x r) -> b f y x (c r q)", q=patch, r=patch)
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        means = self.conv_out(_act(x))[..., : self.config.latent_channels]
        return rearrange(self.statistics.normalize(means), "b f y x c -> b c f y x")


class VideoDecoder(nnx.Module):
    """Normalised latents to video, about -1..1 (not clipped)."""

    def __init__(self, config: VideoDecoderConfig):
        padding, causal = config.padding, config.causal
        channels = 8 * config.base_channels
        self.config = config
        self.statistics = Statistics(config.latent_channels)
        self.conv_in = Conv(config.latent_channels, channels, padding, causal)
        up_blocks = []
        for block in config.blocks:
            if isinstance(block, ResBlocksConfig):
                up_blocks.append(ResBlocks(channels, block.layers, padding, causal))
            else:
                up_blocks.append(Upsample(channels, block, padding, causal))
                channels //= block.multiplier
        self.up_blocks = nnx.List(up_blocks)
        self.conv_out = Conv(channels, config.channels * config.patch_size**2, padding, causal)

    def __call__(self, latents: Float[Array, "b l f y x"]) -> Float[Array, "b c _g _h _w"]:
        """Decode latents; raises InputError where they are too small to be padded by reflection."""
        rows, columns = latents.shape[3:]
        if self.config.padding == "reflect" and min(rows, columns) < 2:
            raise InputError(
                f"latents: got {rows} rows x {columns} columns, expected at least 2 x 2, "
                "which vae.spatial_padding_mode 'reflect' needs"
            )
        x = self.statistics.denormalize(rearrange(latents, "b c f y x -> b f y x c"))
        x = self.conv_in(x)
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(_act(x))
        patch = self.config.patch_size
        return rearrange(x, "b f y x (c r q) -> b c f (y q) (x r)", q=patch, r=patch)
