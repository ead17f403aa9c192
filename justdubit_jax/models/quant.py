"""Frozen weights stored in one byte or half a byte a number, decoded where they are used.

int8 and fp8 (e4m3fn) have one float32 scale per output channel. nf4 is QLoRA's four-bit code
(arXiv 2305.14314): the nearest of 16 values, times a bfloat16 scale per 64 input channels.

Whatever the scheme, int8 or uint8 is what is stored: XLA turns a stack of narrower or of float8
numbers into the activations' dtype ahead of the loop over the blocks, and so takes back the memory
that they save. It does not for bytes that are decoded by arithmetic inside the loop.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

from justdubit_jax.models.layers import Frozen, Linear

Scheme = Literal["int8", "fp8", "nf4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# Source: bitsandbytes' functional.py, create_normal_map, as published with QLoRA (appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_GROUP = 64  # input channels that share an nf4 scale
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # what a channel's largest weight becomes

Bytes = Int8[Array, "*l o n"] | UInt8[Array, "*l o n"]


def encode(weight: Float[Array, "*l o i"], scheme: Scheme) -> tuple[Bytes, Float[Array, "*l o g"]]:
    """A weight as (bytes, scales).

    int8 and fp8 have n = i bytes and g = 1 scale a row; nf4 has g = ceil(i / 64) groups and
    n = 32 g bytes, whose low half is the even channel. Missing channels of a last group are 0.
    """
    weight = weight.astype(jnp.float32)
    if scheme == "nf4":
        return _encode_nf4(weight)
    scales = jnp.abs(weight).max(-1, keepdims=True) / _LARGEST[scheme]
    scaled = weight / jnp.where(scales > 0, scales, 1)
    if scheme == "int8":
        return jnp.round(scaled).astype(jnp.int8), scales
    return jax.lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), jnp.uint8), scales


def decode(
    values: Bytes, scales: Float[Array, "*l o g"], scheme: Scheme, d_in: int, dtype: DTypeLike
) -> Float[Array, "*l o i"]:
    """The inverse of `encode`, for a weight of `d_in` input channels; rounded once, to `dtype`."""
    scales = scales.astype(jnp.float32)
    if scheme == "nf4":
        codes = jnp.stack([values & 15, values >> 4], -1)
        groups = codes.reshape(*scales.shape, _GROUP)
        weight = jnp.asarray(NF4).at[groups].get(mode="promise_in_bounds") * scales[..., None]
        weight = weight.reshape(*values.shape[:-1], -1)[..., :d_in]
    elif scheme == "int8":
        weight = values.astype(jnp.float32) * scales
    else:
        bits = jax.lax.bitcast_convert_type(values, jnp.float8_e4m3fn)
        weight = bits.astype(jnp.float32) * scales
    return weight.astype(dtype)


def _encode_nf4(
    weight: Float[Array, "*l o i"],
) -> tuple[UInt8[Array, "*l o n"], Float[Array, "*l o g"]]:
    *rows, d_in = weight.shape
    weight = jnp.pad(weight, [(0, 0)] * len(rows) + [(0, -d_in % _GROUP)])
    groups = weight.reshape(*rows, -1, _GROUP)
    # Rounded first: codes are nearest for the scale that they are decoded with.
    scales = jnp.abs(groups).max(-1).astype(jnp.bfloat16)
    divisor = scales.astype(jnp.float32)[..., None]
    scaled = groups / jnp.where(divisor > 0, divisor, 1)
    codes = jnp.zeros(scaled.shape, jnp.uint8)
    for between in (NF4[1:] + NF4[:-1]) / 2:
        codes += scaled > between
    codes = codes.reshape(*rows, -1, 2)
    return codes[..., 0] | codes[..., 1] << 4, scales


class Quantized(nnx.Module):
    """A Linear's weight as bytes, in the place of `Linear.weight`; x Wᵀ when called with x."""

    def __init__(self, weight: Float[Array, "*l o i"], scheme: Scheme):
        values, scales = encode(weight, scheme)
        self.values = Frozen(values)
        self.scales = Frozen(scales)
        self.scheme: Scheme = scheme
        self.d_in = weight.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape: [out, in], behind the block axis in stacked blocks."""
        return *self.values.shape[:-1], self.d_in

    @property
    def stored(self) -> dict[str, Frozen]:
        """What `encode` returns, in its order, by attribute name."""
        return {"values": self.values, "scales": self.scales}

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        def product(x: Array, values: Array, scales: Array) -> Array:
            weight = decode(values, scales, self.scheme, self.d_in, x.dtype)
            return jnp.einsum("...i,oi->...o", x, weight)

        # The gradient of x needs the weight: decoded again, not kept from the forward pass.
        return jax.checkpoint(product)(x, self.values[...], self.scales[...])


def quantize[Model: nnx.Module](
    model: Model, scheme: Scheme, is_stacked: Callable[[str], bool]
) -> Model:
    """A copy of an abstract model whose stacked linears are stored in `scheme`.

    `is_stacked` takes the dotted path of a parameter. Biases, norms, tables and everything outside
    the stack of blocks stay as they are, and so do adapters.
    """

    def build(model: Model) -> Model:
        for path, module in _modules(model, Linear):
            if is_stacked(f"{path}.weight"):
                module.weight = Quantized(module.weight[...], scheme)
        return model

    return nnx.eval_shape(build, model)


def quantized_weights(model: nnx.Module) -> dict[str, Quantized]:
    """The quantized weights of a model by the dotted path of the parameter that each replaces."""
    return dict(_modules(model, Quantized))


def _modules[Kind: nnx.Module](model: nnx.Module, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, kind):
            yield ".".join(map(str, path)), module
