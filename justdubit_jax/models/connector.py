"""Hidden states of the text encoder to the video and the audio context of the transformer.

Every layer's hidden states are normalised and projected together (the "feature extractor"), then
two small transformers, one per modality, turn the features into context tokens. Source:
Lightricks/LTX-2 packages/ltx-core/src/ltx_core/text_encoders/gemma. In shape annotations n counts
hidden states and e is the context's width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import Attention, frequency_grid, rotary_table
from justdubit_jax.models.layers import FeedForward, Frozen, Linear, rms_norm

# The reference has both hard-wired; it reads neither from the checkpoint's configuration.
REGISTERS = 128
_THETA = 10_000.0

_LTX23_KEYS = (
    "caption_proj_before_connector",
    "caption_projection_first_linear",
    "caption_projection_second_linear",
    "caption_proj_input_norm",
)


@dataclasses.dataclass(frozen=True)
class Tower:
    """Size of one modality's connector."""

    heads: int
    head_dim: int
    layers: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Sizes of both connectors; `text_width` is the text encoder's width times hidden states."""

    text_width: int
    video: Tower
    audio: Tower
    max_position: float

    @classmethod
    def from_metadata(cls, config: dict[str, Any], text_width: int) -> "ConnectorConfig":
        """From a checkpoint's `config`, and the input width of `aggregate_embed` in its tensors.

        Raises InputError for LTX-2.3 and for what the 19B checkpoint does not use.
        """
        section = config.get("transformer", {})
        later = [key for key in _LTX23_KEYS if key in section]
        if section.get("connector_apply_gated_attention"):
            later.append("connector_apply_gated_attention")
        if later:
            raise InputError(
                f"transformer.{later[0]} is {section[later[0]]!r}, as in LTX-2.3; LTX-2.3 is not "
                "supported yet, expected an LTX-2.0 (19B) checkpoint"
            )
        for key, supported in (("rope_type", "split"), ("frequencies_precision", "float64")):
            if section.get(key) != supported:
                raise InputError(
                    f"transformer.{key} is {section.get(key)!r}; expected {supported!r}"
                )
        max_pos = section.get("connector_positional_embedding_max_pos", [1])
        if len(max_pos) != 1:
            raise InputError(
                "transformer.connector_positional_embedding_max_pos is "
                f"{max_pos!r}; expected one number"
            )
        video = _tower(section, "connector_", Tower(30, 128, 2))
        audio = _tower(section, "audio_connector_", video)
        if audio.width != video.width:
            raise InputError(
                f"transformer.audio_connector_*: width {audio.width}; expected {video.width}, the "
                "video connector's, because both read the same features"
            )
        return cls(text_width, video, audio, float(max_pos[0]))


def _tower(section: dict[str, Any], prefix: str, default: Tower) -> Tower:
    return Tower(
        heads=section.get(prefix + "num_attention_heads", default.heads),
        head_dim=section.get(prefix + "attention_head_dim", default.head_dim),
        layers=section.get(prefix + "num_layers", default.layers),
    )


class Connectors(nnx.Module):
    """Hidden states of all layers to (video context, audio context)."""

    def __init__(self, config: ConnectorConfig):
        self.aggregate_embed = Linear(config.text_width, config.video.width, bias=False)
        self.video_connector = _Connector(config.video, config)
        self.audio_connector = _Connector(config.audio, config)

    def __call__(
        self, hidden_states: Float[Array, "n b t d"], attention_mask: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b t e"], Float[Array, "b t e"]]:
        """Context in the hidden states' dtype, every token of it to be attended to.

        `attention_mask` is 1 on tokens and 0 on the padding to their left. Raises ValueError
        unless t is a multiple of 128.
        """
        length = attention_mask.sum(-1)
        features = self.aggregate_embed(_normalised(hidden_states, attention_mask != 0))
        return self.video_connector(features, length), self.audio_connector(features, length)


def _normalised(hidden_states: Array, real: Array) -> Float[Array, "b t _"]:
    """8 (x - mean) / (max - min) over the tokens and features of each sample and hidden state.

    Padding gives zeros. Features of a token are ordered as the projection expects: hidden states
    vary fastest.
    """
    real = real[None, :, :, None]
    x = hidden_states.astype(jnp.float32)
    extent = {"axis": (2, 3), "keepdims": True}
    mean = jnp.where(real, x, 0).sum(**extent) / (real.sum(**extent) * x.shape[-1] + 1e-6)
    low = jnp.where(real, x, jnp.inf).min(**extent)
    high = jnp.where(real, x, -jnp.inf).max(**extent)
    normalised = jnp.where(real, 8 * (x - mean) / (high - low + 1e-6), 0)
    return rearrange(normalised.astype(hidden_states.dtype), "n b t d -> b t (d n)")


class _Connector(nnx.Module):
    """Transformer over the prompt's tokens, with learned registers in place of the padding."""

    def __init__(self, tower: Tower, config: ConnectorConfig):
        self.tower = tower
        self.max_position = config.max_position
        self.learnable_registers = Frozen(jnp.zeros((REGISTERS, tower.width)))
        self.transformer_1d_blocks = nnx.List([_Block(tower) for _ in range(tower.layers)])

    def __call__(
        self, features: Float[Array, "b t d"], length: Int[Array, " b"]
    ) -> Float[Array, "b t d"]:
        x = self._with_registers(features, length)
        rope = self._rotary(x.shape[1])
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return rms_norm(x)

    def _with_registers(self, features: Array, length: Array) -> Array:
        """Move the last `length` tokens to the front; behind, place i holds register i mod 128."""
        tokens = features.shape[1]
        if tokens % REGISTERS:
            raise ValueError(f"{tokens} text tokens; expected a multiple of {REGISTERS}")
        moved = jax.vmap(lambda x, n: jnp.roll(x, n, axis=0))(features, length)
        registers = jnp.tile(self.learnable_registers[...], (tokens // REGISTERS, 1))
        is_token = jnp.arange(tokens)[None, :, None] < length[:, None, None]
        return jnp.where(is_token, moved, registers[None].astype(features.dtype))

    def _rotary(self, tokens: int) -> tuple[Array, Array]:
        grid = frequency_grid(_THETA, 1, self.tower.width)
        positions = jnp.arange(tokens, dtype=jnp.float32)[None, None]
        return rotary_table(
            positions, (self.max_position,), grid, self.tower.width, self.tower.heads
        )


class _Block(nnx.Module):
    """Self-attention and feed-forward, each on the normalised stream."""

    def __init__(self, tower: Tower):
        self.attn1 = Attention(tower.width, tower.width, tower.heads, tower.head_dim)
        self.ff = FeedForward(tower.width)

    def __call__(self, x: Float[Array, "b t d"], rope: tuple[Array, Array]) -> Array:
        normed = rms_norm(x)
        x = x + self.attn1(normed, normed, rope, rope)
        return x + self.ff(rms_norm(x))
