"""Hidden states of the text encoder to the video and the audio context of the transformer.

Every layer's hidden states are normalised and projected together (the "feature extractor"), then
two small transformers, one per modality, turn the features into context tokens. In LTX-2.0 both
read the same features, and the diffusion transformer projects the contexts to its streams' widths;
in LTX-2.3 each has its own features, as wide as its stream. Source:
Lightricks/LTX-2 packages/ltx-core/src/ltx_core/text_encoders/gemma. In shape annotations n counts
hidden states and e is the context's width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import (
    Attention,
    AttentionConfig,
    frequency_grid,
    rotary_table,
)
from justdubit_jax.models.layers import FeedForward, Frozen, Linear, rms_norm

# The reference has both hard-wired; it reads neither from the checkpoint's configuration.
REGISTERS = 128
_THETA = 10_000.0

# Where features are made for each modality, these have these values; elsewhere they are absent.
_FEATURES_BY_MODALITY = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """Size of one modality's connector."""

    attention: AttentionConfig
    layers: int

    @property
    def width(self) -> int:
        return self.attention.width


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Sizes of both connectors; `text_width` is the text encoder's width times hidden states.

    `shared_features`: both connectors read the same.
    """

    text_width: int
    shared_features: bool
    video: Tower
    audio: Tower
    max_position: float

    @classmethod
    def from_metadata(cls, config: dict[str, Any], text_width: int) -> "ConnectorConfig":
        """From a checkpoint's `config`, and the input width of its feature extractor's tensors.

        Raises InputError for what neither LTX-2.0 (19B) nor LTX-2.3 (22B) has.
        """
        section = config.get("transformer", {})
        shared = not _FEATURES_BY_MODALITY.keys() & section.keys()
        for key, supported in {} if shared else _FEATURES_BY_MODALITY.items():
            if section.get(key) != supported:
                raise InputError(
                    f"transformer.{key} is {section.get(key)!r}; expected {supported!r}"
                )
        norm = section.get("text_encoder_norm_type", "per_token_rms")
        if not shared and norm != "per_token_rms":
            raise InputError(
                f"transformer.text_encoder_norm_type is {norm!r}; expected 'per_token_rms'"
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
        gated = section.get("connector_apply_gated_attention", False)
        video = _tower(section, "connector_", Tower(AttentionConfig(30, 128, gated), 2))
        audio = _tower(section, "audio_connector_", video)
        if shared and audio.width != video.width:
            raise InputError(
                f"transformer.audio_connector_*: width {audio.width}; expected {video.width}, the "
                "video connector's, because both read the same features"
            )
        return cls(text_width, shared, video, audio, float(max_pos[0]))


def _tower(section: dict[str, Any], prefix: str, default: Tower) -> Tower:
    heads = section.get(prefix + "num_attention_heads", default.attention.heads)
    head_dim = section.get(prefix + "attention_head_dim", default.attention.head_dim)
    attention = dataclasses.replace(default.attention, heads=heads, head_dim=head_dim)
    return Tower(attention, section.get(prefix + "num_layers", default.layers))


class Connectors(nnx.Module):
    """Hidden states of all layers to (video context, audio context)."""

    def __init__(self, config: ConnectorConfig):
        self.text_width = config.text_width
        extractor = SharedFeatures if config.shared_features else FeaturesByModality
        self.features = extractor(config)
        self.video_connector = _Connector(config.video, config)
        self.audio_connector = _Connector(config.audio, config)

    def __call__(
        self, hidden_states: Float[Array, "n b t d"], attention_mask: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b t e"], Float[Array, "b t f"]]:
        """Context in the hidden states' dtype, every token of it to be attended to.

        `attention_mask` is 1 on tokens and 0 on the padding to their left. Raises ValueError
        unless t is a multiple of 128.
        """
        length = attention_mask.sum(-1)
        video, audio = self.features(hidden_states, attention_mask != 0)
        return self.video_connector(video, length), self.audio_connector(audio, length)


class SharedFeatures(nnx.Module):
    """Hidden states in each one's range over the prompt, projected once for both modalities."""

    def __init__(self, config: ConnectorConfig):
        self.aggregate_embed = Linear(config.text_width, config.video.width, bias=False)

    def __call__(
        self, hidden_states: Float[Array, "n b t d"], real: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t e"], Float[Array, "b t e"]]:
        features = self.aggregate_embed(_in_range(hidden_states, real))
        return features, features


class FeaturesByModality(nnx.Module):
    """Hidden states by their norm at each token, projected for each modality.

    An input is scaled by the square root of how much wider the features are than a hidden state.
    Padding is not masked: registers stand in its place behind this.
    """

    def __init__(self, config: ConnectorConfig):
        self.video_aggregate_embed = Linear(config.text_width, config.video.width)
        self.audio_aggregate_embed = Linear(config.text_width, config.audio.width)

    def __call__(
        self, hidden_states: Float[Array, "n b t d"], real: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t e"], Float[Array, "b t f"]]:
        normed = rearrange(rms_norm(hidden_states), "n b t d -> b t (d n)")
        video, audio = (
            linear(normed * math.sqrt(linear.weight.shape[0] / hidden_states.shape[-1]))
            for linear in (self.video_aggregate_embed, self.audio_aggregate_embed)
        )
        return video, audio


def _in_range(hidden_states: Array, real: Array) -> Float[Array, "b t _"]:
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
            positions, (self.max_position,), grid, self.tower.width, self.tower.attention.heads
        )


class _Block(nnx.Module):
    """Self-attention and feed-forward, each on the normalised stream."""

    def __init__(self, tower: Tower):
        self.attn1 = Attention(tower.width, tower.width, tower.attention)
        self.ff = FeedForward(tower.width)

    def __call__(self, x: Float[Array, "b t d"], rope: tuple[Array, Array]) -> Array:
        normed = rms_norm(x)
        x = x + self.attn1(normed, normed, rope, rope)
        return x + self.ff(rms_norm(x))
