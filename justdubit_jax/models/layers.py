"""Layers that several models share.

Letters in shape annotations, in every file: b batch, t tokens or time steps, s keys, h heads,
d features, c channels, f frames, x y height and width. Attribute names are the checkpoint's
(`to_q`, `q_norm`, `net`), so a module's path is its checkpoint key and key tables stay short; so
are the shapes: a Linear weight is [out, in], a convolution's [out, in, *kernel]. Weights are
always read from a file, so modules start as zeros and are built under `nnx.eval_shape`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Frozen(nnx.Variable):
    """A base weight: loaded from the checkpoint, never trained."""


class LoRA(nnx.Module):
    """Low-rank update of one linear layer: scale * B(A(dropout(x))).

    `A` is [r, in], `B` is [out, r], float32 masters (with a leading layer axis in stacked blocks).
    `dropout_key` is set inside a training step, see lora.seed_dropout; without one nothing drops.
    """

    def __init__(self, a: Array, b: Array, scale: float, dropout: float):
        self.A = nnx.LoRAParam(a)
        self.B = nnx.LoRAParam(b)
        self.scale = scale
        self.dropout = dropout
        self.dropout_key: Array | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        if self.dropout and self.dropout_key is not None:
            keep = jax.random.bernoulli(self.dropout_key, 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)
        low = jnp.einsum("...i,ri->...r", x, self.A[...].astype(x.dtype))
        return jnp.einsum("...r,or->...o", low * self.scale, self.B[...].astype(x.dtype))


class Linear(nnx.Module):
    """y = x Wᵀ + bias, plus the LoRA update where `lora.attach` put one.

    `weight` is a matrix, or what quant.quantize put in its place, which multiplies by itself.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = True):
        self.weight: Any = Frozen(jnp.zeros((d_out, d_in)))
        self.bias = Frozen(jnp.zeros(d_out)) if bias else None
        self.lora: LoRA | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        if isinstance(self.weight, Frozen):
            y = jnp.einsum("...i,oi->...o", x, self.weight[...].astype(x.dtype))
        else:
            y = self.weight(x)
        update = None if self.lora is None else self.lora(x)
        if self.bias is not None:
            # Joined to the update: cuBLAS adds a bias to the wide product only where XLA has
            # copied its weight out of the stack of blocks (docs/gpu-record.md).
            bias = jax.lax.broadcast_to_rank(self.bias[...].astype(x.dtype), y.ndim)
            update = bias if update is None else update + bias
        return y if update is None else y + update


def rms_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """x / rms(x) over the last axis; computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS norm over the last axis with a learned scale."""

    def __init__(self, dim: int, eps: float = 1e-6):
        self.weight = Frozen(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = jax.lax.broadcast_to_rank(self.weight[...].astype(x.dtype), x.ndim)
        return rms_norm(x, self.eps) * scale


class FeedForward(nnx.Module):
    """Linear to 4 d, tanh-approximated GELU, linear back; `net.0.proj` and `net.2` by name."""

    def __init__(self, dim: int):
        into = nnx.Dict({"proj": Linear(dim, 4 * dim)})
        self.net: Any = nnx.List([into, nnx.Dict(), Linear(4 * dim, dim)])

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.net[2](jax.nn.gelu(self.net[0]["proj"](x), approximate=True))


class TwoLinears(nnx.Module):
    """linear_2(activation(linear_1(x))), under the checkpoint's names."""

    def __init__(self, d_in: int, dim: int):
        self.linear_1 = Linear(d_in, dim)
        self.linear_2 = Linear(dim, dim)

    def __call__(self, x: Float[Array, "*b d"], activation: Any) -> Float[Array, "*b e"]:
        return self.linear_2(activation(self.linear_1(x)))
