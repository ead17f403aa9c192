"""One block of the transformer: two streams, and the attention between them.

A token's timestep is either 0 (reference and conditioned tokens: "clean") or its sample's sigma, so
modulations come for these two values and are selected per token. Isolation of the reference tokens
in the audio-video attention is slicing: target queries attend to target keys, and the output of a
reference query is zero before `to_out`, whose bias remains.

Source of the formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/transformer.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.models.attention import ONE_DEVICE, Attention, Execution
from justdubit_jax.models.layers import FeedForward, Frozen, rms_norm
from justdubit_jax.models.transformer_config import StreamConfig, TransformerConfig


class Skip(NamedTuple):
    """Attention that a guidance pass does without, by block and sample.

    A skipped self-attention passes its values on; one between the modalities adds nothing.
    """

    video_self: Bool[Array, "l b"]
    audio_self: Bool[Array, "l b"]
    audio_to_video: Bool[Array, "l b"]
    video_to_audio: Bool[Array, "l b"]


class Conditioning(NamedTuple):
    """What a block needs to know of one stream; axis 2 of the modulations is (clean, noisy).

    `context_modulation` is the text's own, where the model has one: of all its tokens alike.
    """

    is_clean: Bool[Array, "b t"]
    modulation: Float[Array, "b 2 r d"]
    cross_modulation: Float[Array, "b 2 5 d"]
    rope: tuple[Array, Array]
    cross_rope: tuple[Array, Array]
    context: Float[Array, "b s d"]
    context_len: Int[Array, " b"] | None
    context_modulation: Float[Array, "b 1 2 d"] | None

    def select(self, values: Float[Array, "b 2 d"]) -> Float[Array, "b t d"]:
        """Per token, the clean or the noisy value.

        As a sum, exact for what is finite: a choice by element would be kept and read again as a
        mask as wide as the tokens.
        """
        clean = self.is_clean[..., None].astype(values.dtype)
        return clean * values[:, :1] + (1 - clean) * values[:, 1:]


class Stream(nnx.Module):
    """One modality's half of a block.

    Rows of `scale_shift_table`: shift, scale, gate of the self-attention, then of the
    feed-forward, then of the attention to the text where that is modulated; the text itself then
    has shift and scale in `prompt_scale_shift_table`. Rows of `cross_scale_shift_table`: scale and
    shift for audio-to-video, scale and shift for video-to-audio, then the gate of the direction in
    which this stream is the query.
    """

    def __init__(self, config: TransformerConfig, stream: StreamConfig):
        dim = stream.dim
        self.attn1 = Attention(dim, dim, stream.attention)
        self.attn2 = Attention(dim, dim, stream.attention)
        self.ff = FeedForward(dim)
        self.scale_shift_table = Frozen(jnp.zeros((config.modulation_rows, dim)))
        self.cross_scale_shift_table = Frozen(jnp.zeros((5, dim)))
        modulated = config.text_modulation
        self.prompt_scale_shift_table = Frozen(jnp.zeros((2, dim))) if modulated else None
        self.eps = config.norm_eps

    def attend(
        self,
        x: Float[Array, "b t d"],
        cond: Conditioning,
        values_only: Bool[Array, " b"] | None,
        execution: Execution,
    ) -> Float[Array, "b t d"]:
        """Self-attention, then attention to the text."""
        shift, scale, gate = self._rows(cond, slice(0, 3))
        y = _modulate(rms_norm(x, self.eps), scale, shift)
        update = self.attn1(
            y, y, cond.rope, cond.rope, values_only=values_only, execution=execution
        )
        return self._attend_to_text(_add(x, gate, update), cond, execution)

    def _attend_to_text(self, x: Array, cond: Conditioning, execution: Execution) -> Array:
        y, context, gate = rms_norm(x, self.eps), cond.context, 1
        if self.prompt_scale_shift_table is not None and cond.context_modulation is not None:
            shift, scale, gate = self._rows(cond, slice(6, 9))
            y = _modulate(y, scale, shift)
            rows = self.prompt_scale_shift_table[...][None, None] + cond.context_modulation
            context = _modulate(context, rows[:, :, 1], rows[:, :, 0])
        update = self.attn2(y, context, context_len=cond.context_len, execution=execution)
        return _add(x, gate, update)

    def feed_forward(self, x: Float[Array, "b t d"], cond: Conditioning) -> Float[Array, "b t d"]:
        shift, scale, gate = self._rows(cond, slice(3, 6))
        return _add(x, gate, self.ff(_modulate(rms_norm(x, self.eps), scale, shift)))

    def for_cross(
        self, x: Float[Array, "b t d"], cond: Conditioning
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Normed x as modulated for audio-to-video and for video-to-audio, and the gate."""
        rows = self.cross_scale_shift_table[...][None, None] + cond.cross_modulation
        a2v_scale, a2v_shift, v2a_scale, v2a_shift, gate = (
            cond.select(rows[:, :, i]) for i in range(5)
        )
        normed = rms_norm(x, self.eps)
        a2v = _modulate(normed, a2v_scale, a2v_shift)
        return a2v, _modulate(normed, v2a_scale, v2a_shift), gate

    def _rows(self, cond: Conditioning, which: slice) -> list[Array]:
        rows = self.scale_shift_table[which][None, None] + cond.modulation[:, :, which]
        return [cond.select(rows[:, :, i]) for i in range(rows.shape[2])]


def _modulate(x: Array, scale: Array, shift: Array) -> Array:
    """x (1 + scale) + shift, where the modulation is float32 and x may be bfloat16."""
    return (x * (1 + scale) + shift).astype(x.dtype)


def _add(x: Array, gate: Array | int, update: Array) -> Array:
    """The gated residual add, rounded once."""
    return (x + gate * update).astype(x.dtype)


class Block(nnx.Module):
    """A video stream, an audio stream, and the attention between them."""

    def __init__(self, config: TransformerConfig):
        video, audio = config.video, config.audio
        self.video = Stream(config, video)
        self.audio = Stream(config, audio)
        self.audio_to_video = Attention(video.dim, audio.dim, audio.attention)
        self.video_to_audio = Attention(audio.dim, video.dim, audio.attention)

    def __call__(
        self,
        v: Float[Array, "b tv dv"],
        a: Float[Array, "b ta da"],
        v_cond: Conditioning,
        a_cond: Conditioning,
        isolated: tuple[int, int],
        skip: Skip | None,
        execution: Execution,
    ) -> tuple[Float[Array, "b tv dv"], Float[Array, "b ta da"]]:
        v = self.video.attend(v, v_cond, skip and skip.video_self, execution)
        a = self.audio.attend(a, a_cond, skip and skip.audio_self, execution)
        v_for_a2v, v_for_v2a, v_gate = self.video.for_cross(v, v_cond)
        a_for_a2v, a_for_v2a, a_gate = self.audio.for_cross(a, a_cond)
        v_side, a_side = (v_cond.cross_rope, isolated[0]), (a_cond.cross_rope, isolated[1])
        a2v, v2a = self.audio_to_video, self.video_to_audio
        to_v = cross_attention(a2v, v_for_a2v, a_for_a2v, v_side, a_side, execution)
        to_a = cross_attention(v2a, a_for_v2a, v_for_v2a, a_side, v_side, execution)
        if skip is not None:
            to_v = jnp.where(skip.audio_to_video[:, None, None], 0, to_v)
            to_a = jnp.where(skip.video_to_audio[:, None, None], 0, to_a)
        v, a = _add(v, v_gate, to_v), _add(a, a_gate, to_a)
        return self.video.feed_forward(v, v_cond), self.audio.feed_forward(a, a_cond)


def cross_attention(
    attn: Attention,
    x: Float[Array, "b t d"],
    context: Float[Array, "b s e"],
    x_side: tuple[tuple[Array, Array], int],
    context_side: tuple[tuple[Array, Array], int],
    execution: Execution = ONE_DEVICE,
) -> Float[Array, "b t d"]:
    """Attention from x to the other modality; a side is (rotary table, isolated leading tokens).

    An isolated query's attention output is zero, of which `to_out` leaves its bias.
    """
    (cos, sin), first = x_side
    (context_cos, context_sin), context_first = context_side
    out = attn(
        x[:, first:],
        context[:, context_first:],
        (cos[:, first:], sin[:, first:]),
        (context_cos[:, context_first:], context_sin[:, context_first:]),
        execution=execution,
    )
    bias: Any = attn.to_out[0].bias
    isolated = jnp.broadcast_to(bias[...].astype(out.dtype), (len(x), first, out.shape[2]))
    return jnp.concatenate([isolated, out], 1)
