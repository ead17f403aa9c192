"""Attention, its rotary angles, and how a machine runs it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.models.layers import Linear, RMSNorm

# What the backward pass recomputes of the transformer's blocks: nothing ("none"), everything but
# their inputs ("full"), that without the attention ("attention": its outputs are kept), without its
# keys and values ("keys") and queries ("queries") too, or everything, from inputs that wait in the
# host's memory ("offload").
Remat = Literal["none", "full", "attention", "keys", "queries", "offload"]

# The names of what may be kept, for rematerialisation policies; keys are values too.
ATTENTION, KEYS, QUERIES = "attention", "keys", "queries"

Attend = Callable[[Array, Array, Array, Array | None], Array]


def attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    kv_len: Int[Array, " b"] | None = None,
) -> Float[Array, "b t h d"]:
    """softmax(q kᵀ / sqrt(d)) v, over the first `kv_len` keys of each sample where given.

    On a GPU in half precision it is cuDNN's flash attention, which never holds the t*s scores;
    elsewhere XLA's. Structure (which tokens see which) is expressed by slicing before the call,
    never by a mask: a query without any key has no portable meaning.
    """
    if jax.default_backend() != "gpu":
        return xla_attention(q, k, v, kv_len)
    if has_flash():
        return flash_attention(q, k, v, kv_len)
    return plain_attention(q, k, v, kv_len)


def has_flash() -> bool:
    """Whether the devices have cuDNN's attention, and bfloat16: GPUs from Ampere (8.0) on."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return jax.default_backend() == "gpu" and (capability is None or float(capability) >= 8)


def plain_attention(q: Array, k: Array, v: Array, kv_len: Array | None = None) -> Array:
    """`attention` by XLA in float32, for GPUs that multiply no bfloat16."""
    wide = jnp.float32
    return xla_attention(q.astype(wide), k.astype(wide), v.astype(wide), kv_len).astype(q.dtype)


def flash_attention(q: Array, k: Array, v: Array, kv_len: Array | None = None) -> Array:
    """`attention` by cuDNN where it has it: in half precision, heads of a multiple of 8."""
    if q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0:
        return at_even_lengths(_cudnn_attention, q, k, v, kv_len)
    return xla_attention(q, k, v, kv_len)


def xla_attention(q: Array, k: Array, v: Array, kv_len: Array | None = None) -> Array:
    """`attention` by XLA, which holds the scores."""
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=kv_len, implementation="xla")
    return checkpoint_name(out, ATTENTION)


def _cudnn_attention(q: Array, k: Array, v: Array, kv_len: Array | None) -> Array:
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=kv_len, implementation="cudnn"
    )


def at_even_lengths(
    attend: Attend, q: Array, k: Array, v: Array, kv_len: Array | None = None
) -> Array:
    """`attend` with queries, keys and values padded to even numbers of tokens, equal to unpadded.

    JAX refuses the gradient of cuDNN's attention over an odd length (121 audio latents, five
    seconds at 25 frames a second, are one). Padded keys lie beyond `kv_len`; padded queries are
    cut off again.
    """
    tokens, keys = q.shape[1], k.shape[1]
    if keys % 2 and kv_len is None:
        kv_len = jnp.full(len(k), keys, jnp.int32)

    def even(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    return attend(even(q), even(k), even(v), kv_len)[:, :tokens]


class Execution(NamedTuple):
    """How the transformer runs: what costs memory or time and changes no number.

    `gather` turns one block's weights as they are stored into the weights as the block uses them,
    where devices share one copy. `by_sample` divides an array over the devices along its leading
    axis, the samples. None is for one device, where there is nothing to do.
    """

    remat: Remat = "none"
    gather: Callable[[Any], Any] | None = None
    by_sample: Callable[[Array], Array] | None = None
    attend: Attend = attention

    def attention(self, q: Array, k: Array, v: Array, kv_len: Array | None) -> Array:
        """Attention with queries, keys, values and result divided alike.

        cuDNN's partitioning wants that, while XLA by itself leaves the text's keys and values
        whole on every device.
        """
        place = self.by_sample or (lambda x: x)
        return place(self.attend(place(q), place(k), place(v), kv_len))


ONE_DEVICE = Execution()


def frequency_grid(theta: float, axes: int, dim: int) -> Float[np.ndarray, " n"]:
    """Rotary frequencies theta^(0..1) * pi/2, dim // (2 axes) of them.

    Computed in float64 and rounded to float32, as `frequencies_precision: float64` has it.
    Source: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/transformer/rope.py.
    """
    exponents = np.linspace(0.0, 1.0, dim // (2 * axes))
    return (theta**exponents * np.pi / 2).astype(np.float32)


def rotary_table(
    positions: Float[Array, "b n t"],
    max_pos: tuple[float, ...],
    grid: Float[np.ndarray, " m"],
    dim: int,
    heads: int,
) -> tuple[Float[Array, "b t h k"], Float[Array, "b t h k"]]:
    """cos and sin of the rotary angles, float32, k = dim / heads / 2 per head.

    `positions` are one number per axis and token (seconds, rows, columns); an axis spans -1..1
    over 0..max_pos. Angles reach 15,708 rad, so the order of operations is the reference's and
    everything is float32; the barrier keeps XLA from turning the division by a constant, or by
    anything broadcast, into a multiplication.
    Frequencies vary slowest over axes; missing ones are padded in front with angle 0.
    """
    limits = jnp.broadcast_to(jnp.array(max_pos, jnp.float32)[:, None], positions.shape)
    fraction = positions.astype(jnp.float32) / jax.lax.optimization_barrier(limits) * 2 - 1
    angles = jnp.einsum("bnt,m->btmn", fraction, grid, precision="highest")
    angles = angles.reshape(*angles.shape[:2], -1)
    angles = jnp.pad(angles, ((0, 0), (0, 0), (dim // 2 - angles.shape[-1], 0)))
    angles = angles.reshape(*angles.shape[:2], heads, -1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x: Float[Array, "b t h d"],
    table: tuple[Float[Array, "#b t #h k"], Float[Array, "#b t #h k"]],
) -> Float[Array, "b t h d"]:
    """Rotate the pairs (x[i], x[i + d/2]) of every head ("split" layout), in float32."""
    cos, sin = table
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Its inner size, whether heads are gated (LTX-2.3), and the epsilon of its norms."""

    heads: int
    head_dim: int
    gated: bool = False
    eps: float = 1e-6

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Attention(nnx.Module):
    """Multi-head attention with RMS-normalised queries and keys, as in every LTX-2 block.

    A gate, where there is one, scales what each head brings to each query, by 0 to 2.
    """

    def __init__(self, dim: int, context_dim: int, config: AttentionConfig):
        inner, eps = config.width, config.eps
        self.heads = config.heads
        self.q_norm = RMSNorm(inner, eps)
        self.k_norm = RMSNorm(inner, eps)
        self.to_gate_logits = Linear(dim, config.heads) if config.gated else None
        self.to_q = Linear(dim, inner)
        self.to_k = Linear(context_dim, inner)
        self.to_v = Linear(context_dim, inner)
        self.to_out = nnx.List([Linear(inner, dim)])

    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"],
        rope: tuple[Array, Array] | None = None,
        context_rope: tuple[Array, Array] | None = None,
        context_len: Int[Array, " b"] | None = None,
        values_only: Bool[Array, " b"] | None = None,
        execution: Execution = ONE_DEVICE,
    ) -> Float[Array, "b t d"]:
        """Attend from x to context; `rope` rotates the queries, `context_rope` the keys.

        Samples of `values_only` (self-attention) pass their values on in place of attending.
        """
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        if rope is not None and context_rope is not None:
            q, k = apply_rotary(q, rope), apply_rotary(k, context_rope)
        q = checkpoint_name(q, QUERIES)
        k, v = checkpoint_name(k, KEYS), checkpoint_name(v, KEYS)
        out = execution.attention(q, k, v, context_len)
        if values_only is not None:
            out = jnp.where(values_only[:, None, None, None], v, out)
        if self.to_gate_logits is not None:
            out = out * (2 * jax.nn.sigmoid(self.to_gate_logits(x)))[..., None]
        return self.to_out[0](out.reshape(*out.shape[:2], -1))
