"""Gemma 3's text model, returning the hidden states of all its layers.

LTX-2 conditions on every layer of the language model at once, so there is no output head, no cache
and no sampling here. Attribute names are those of a Hugging Face folder below
`language_model.model.`; formulas are those of huggingface/transformers, src/transformers/models/
gemma3/modeling_gemma3.py. In shape annotations n counts hidden states.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import apply_rotary
from justdubit_jax.models.layers import Frozen, Linear, rms_norm

Rotary = tuple[Float[Array, "1 t 1 k"], Float[Array, "1 t 1 k"]]

_SLIDING, _GLOBAL = "sliding_attention", "full_attention"

_THETA = {_SLIDING: ("rope_local_base_freq", 10_000.0), _GLOBAL: ("rope_theta", 1_000_000.0)}

# The supported values of the keys that are not sizes; the first is what an absent key means.
_SUPPORTED = {
    "model_type": ("gemma3_text",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer: its base, and what positions are divided by."""

    theta: float
    factor: float


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes of the text model; `sliding` says for each layer whether its attention is windowed."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    eps: float
    window: int
    sliding: tuple[bool, ...]
    local_rope: Rope
    global_rope: Rope

    @classmethod
    def from_folder_config(cls, config: dict[str, Any]) -> "GemmaConfig":
        """From the content of a config.json, of the multimodal or the text model.

        Absent keys mean what they mean to transformers' Gemma3TextConfig; its rotary settings are
        read in the layout of version 4 and of version 5. Raises InputError for other models.
        """
        text = config.get("text_config") or config
        for key, supported in _SUPPORTED.items():
            if (got := text.get(key, supported[0])) not in supported:
                raise _unsupported(key, got, repr(supported[0]))
        size = functools.partial(_positive, text)
        heads, kv_heads = size("num_attention_heads", 8), size("num_key_value_heads", 4)
        if heads % kv_heads:
            raise _unsupported("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
        return cls(
            vocab_size=size("vocab_size", 262208),
            hidden_size=size("hidden_size", 2304),
            intermediate_size=size("intermediate_size", 9216),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size("head_dim", 256),
            query_pre_attn_scalar=float(size("query_pre_attn_scalar", 256)),
            eps=float(size("rms_norm_eps", 1e-6)),
            window=size("sliding_window", 4096),
            sliding=_sliding_layers(text),
            local_rope=_rope(text, _SLIDING),
            global_rope=_rope(text, _GLOBAL),
        )


def _unsupported(key: str, got: object, expected: str) -> InputError:
    return InputError(f"Gemma config.json: {key} is {got!r}; expected {expected}")


def _positive(text: dict[str, Any], key: str, default: Any) -> Any:
    value = text.get(key, default)
    if not isinstance(value, int | float) or value <= 0:
        raise _unsupported(key, value, "a positive number")
    return value


def _sliding_layers(text: dict[str, Any]) -> tuple[bool, ...]:
    count = _positive(text, "num_hidden_layers", 26)
    types = text.get("layer_types")
    if types is None:
        period = _positive(text, "sliding_window_pattern", 6)
        return tuple((layer + 1) % period != 0 for layer in range(count))
    if len(types) != count or not set(types) <= {_SLIDING, _GLOBAL}:
        raise _unsupported("layer_types", types, f"{count} of {_SLIDING} or {_GLOBAL}")
    return tuple(kind == _SLIDING for kind in types)


def _rope(text: dict[str, Any], kind: str) -> Rope:
    """Version 5 keeps `rope_parameters` per kind of layer; version 4's keys fill what they omit."""
    layout = text.get("rope_parameters") or {}
    if not set(layout) <= {_SLIDING, _GLOBAL}:
        raise _unsupported("rope_parameters", layout, f"the keys {_SLIDING} and {_GLOBAL}")
    theta_key, theta = _THETA[kind]
    given = {"rope_theta": text.get(theta_key, theta), **(layout.get(kind) or {})}
    if kind == _GLOBAL:
        given |= text.get("rope_scaling") or {}
    name = given.get("rope_type", given.get("type", "default"))
    if name not in ("default", "linear"):
        raise _unsupported(f"rope type of {kind}", name, "default or linear")
    factor = _positive(given, "factor", None) if name == "linear" else 1.0
    return Rope(float(_positive(given, "rope_theta", None)), float(factor))


class Gemma(nnx.Module):
    """Token ids to the embedding, the output of every layer but the last, and the final norm's."""

    def __init__(self, config: GemmaConfig):
        self.config = config
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nnx.vmap(lambda: _Layer(config), axis_size=len(config.sliding))()
        self.norm = _Norm(config.hidden_size, config.eps)

    def __call__(
        self, input_ids: Int[Array, "b t"], attention_mask: Int[Array, "b t"]
    ) -> Float[Array, "n b t d"]:
        """Hidden states in the weights' dtype, n = layers + 1, as output_hidden_states orders them.

        `attention_mask` is 1 on tokens and 0 on the padding to their left; positions count the
        padding too. Rows of padding come back finite and without meaning.
        """
        config = self.config
        hidden = self.embed_tokens(input_ids)
        everywhere, nearby = _masks(attention_mask, config.window)
        length = input_ids.shape[1]
        view_global = everywhere, _rotary(length, config.head_dim, config.global_rope)
        view_local = nearby, _rotary(length, config.head_dim, config.local_rope)
        graphdef, state = nnx.split(self.layers)

        def body(hidden: Array, layer: tuple[Any, Array]) -> tuple[Array, Array]:
            weights, sliding = layer
            choose = functools.partial(jnp.where, sliding)
            mask, rotary = jax.tree.map(choose, view_local, view_global)
            return nnx.merge(graphdef, weights)(hidden, mask, rotary), hidden

        layers = nnx.as_pure(state), jnp.array(config.sliding)
        last, before = jax.lax.scan(body, hidden, layers)
        return jnp.concatenate([before, self.norm(last)[None]])


def _masks(
    attention_mask: Int[Array, "b t"], window: int
) -> tuple[Bool[Array, "b t t"], Bool[Array, "b t t"]]:
    """Which earlier token a token sees: all of them, and the last `window` with itself."""
    position = jnp.arange(attention_mask.shape[1])
    distance = position[:, None] - position[None, :]
    causal = (distance >= 0)[None] & (attention_mask != 0)[:, None, :]
    return causal, causal & (distance < window)[None]


def _rotary(length: int, head_dim: int, rope: Rope) -> Rotary:
    """cos and sin for positions 0..length-1, float32, k = head_dim / 2."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = 1 / np.float32(rope.theta) ** exponents / np.float32(rope.factor)
    positions = jnp.arange(length, dtype=jnp.float32)
    angles = positions[None, :, None, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


class _Embedding(nnx.Module):
    """Rows of the table times sqrt(width), the factor rounded to the table's dtype first."""

    def __init__(self, vocab_size: int, dim: int):
        self.weight = Frozen(jnp.zeros((vocab_size, dim)))

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        rows = jnp.take(self.weight[...], ids, axis=0)
        return rows * jnp.array(rows.shape[-1] ** 0.5, rows.dtype)


class _Norm(nnx.Module):
    """RMS norm whose scale is 1 + weight, all of it in float32."""

    def __init__(self, dim: int, eps: float):
        self.weight = Frozen(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = 1 + jax.lax.broadcast_to_rank(self.weight[...].astype(jnp.float32), x.ndim)
        return (rms_norm(x.astype(jnp.float32), self.eps) * scale).astype(x.dtype)


class _Layer(nnx.Module):
    """Attention and gated MLP, each normalised before and after, around a residual stream."""

    def __init__(self, config: GemmaConfig):
        dim, eps = config.hidden_size, config.eps
        self.input_layernorm = _Norm(dim, eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(dim, eps)
        self.pre_feedforward_layernorm = _Norm(dim, eps)
        self.mlp = _GatedMLP(dim, config.intermediate_size)
        self.post_feedforward_layernorm = _Norm(dim, eps)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t t"], rotary: Rotary
    ) -> Float[Array, "b t d"]:
        attended = self.self_attn(self.input_layernorm(x), mask, rotary)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class _Attention(nnx.Module):
    """Grouped-query attention with normalised, rotated queries and keys."""

    def __init__(self, config: GemmaConfig):
        inner, kv_inner = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_proj = Linear(config.hidden_size, inner, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_inner, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_inner, bias=False)
        self.o_proj = Linear(inner, config.hidden_size, bias=False)
        self.q_norm = _Norm(config.head_dim, config.eps)
        self.k_norm = _Norm(config.head_dim, config.eps)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t t"], rotary: Rotary
    ) -> Float[Array, "b t d"]:
        q, k, v = (
            rearrange(projection(x), "b t (h d) -> b t h d", d=self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary(self.q_norm(q), rotary), apply_rotary(self.k_norm(k), rotary)
        # XLA's attention, because a window of keys that also skips padding needs a mask; at the
        # prompt's length its t * t scores are small. Its softmax is float32.
        out = jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], scale=self.scale, implementation="xla"
        )
        return self.o_proj(rearrange(out, "b t h d -> b t (h d)"))


class _GatedMLP(nnx.Module):
    """down(gelu(gate(x)) * up(x)), the GELU by its tanh approximation."""

    def __init__(self, dim: int, inner: int):
        self.gate_proj = Linear(dim, inner, bias=False)
        self.up_proj = Linear(dim, inner, bias=False)
        self.down_proj = Linear(inner, dim, bias=False)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        gate = jax.nn.gelu(self.gate_proj(x), approximate=True)
        return self.down_proj(gate * self.up_proj(x))
