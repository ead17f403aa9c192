"""LTX-2's joint audio-video diffusion transformer.

Two streams of tokens, video and audio, run side by side through the same blocks: each attends to
itself and to its text, then they attend to one another, then each has its feed-forward. A
modality's tokens stand as [reference | target].

Two things are simpler here than in the reference, by design:

* A token's timestep is either 0 (reference and conditioned tokens: "clean") or its sample's sigma,
  so every modulation is computed for these two values and selected per token. Clean tokens come
  first, so a length per sample says which they are.
* Isolation of the reference tokens in the audio-video attention is slicing: target queries attend
  to target keys, and the output of a reference query is zero before `to_out`, whose bias remains.

Source of the formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/model/transformer.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.errors import InputError
from justdubit_jax.models.layers import (
    ATTENTION,
    ONE_DEVICE,
    Attention,
    Execution,
    FeedForward,
    Frozen,
    Linear,
    TwoLinears,
    frequency_grid,
    rms_norm,
    rotary_table,
)

# Whose timesteps modulate the audio-video attention: the modality's own, per token (JustDubit's
# trainer and its released LoRA), or the other modality's sigma (ltx-core >= 1.0.0).
CrossTimestep = Literal["own", "other"]


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One modality's half of the model."""

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    max_pos: tuple[float, ...]  # extent of each position axis: seconds, pixel rows, pixel columns

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and constants, from the checkpoint's `config` metadata."""

    layers: int
    video: StreamConfig
    audio: StreamConfig
    caption_channels: int
    norm_eps: float
    rope_theta: float
    timestep_scale: float
    cross_gate_timestep_scale: float

    @classmethod
    def from_metadata(cls, config: dict[str, Any]) -> "TransformerConfig":
        """Read the "transformer" section; absent keys take the reference's defaults.

        Raises InputError on a value that this model does not have.
        """
        section = config.get("transformer", {})
        for key, supported in _SUPPORTED.items():
            if section.get(key, supported) != supported:
                raise InputError(
                    f"checkpoint config: transformer.{key} is {section[key]!r}, "
                    f"expected {supported!r}"
                )
        for key in ("apply_gated_attention", "cross_attention_adaln"):
            if section.get(key):
                raise InputError(
                    f"checkpoint config: transformer.{key} is set: LTX-2.3 is not supported yet"
                )
        get = section.get
        video = StreamConfig(
            heads=get("num_attention_heads", 32),
            head_dim=get("attention_head_dim", 128),
            in_channels=get("in_channels", 128),
            out_channels=get("out_channels", 128),
            max_pos=tuple(map(float, get("positional_embedding_max_pos", (20, 2048, 2048)))),
        )
        audio = StreamConfig(
            heads=get("audio_num_attention_heads", 32),
            head_dim=get("audio_attention_head_dim", 64),
            in_channels=get("audio_in_channels", 128),
            out_channels=get("audio_out_channels", 128),
            max_pos=tuple(map(float, get("audio_positional_embedding_max_pos", (20,)))),
        )
        _check_equal("cross_attention_dim", get("cross_attention_dim", 4096), video.dim)
        _check_equal("audio_cross_attention_dim", get("audio_cross_attention_dim", 2048), audio.dim)
        _check_equal("audio_num_attention_heads", audio.heads, video.heads)
        return cls(
            layers=get("num_layers", 48),
            video=video,
            audio=audio,
            caption_channels=get("caption_channels", 3840),
            norm_eps=get("norm_eps", 1e-6),
            rope_theta=float(get("positional_embedding_theta", 10000)),
            timestep_scale=float(get("timestep_scale_multiplier", 1000)),
            cross_gate_timestep_scale=float(get("av_ca_timestep_scale_multiplier", 1)),
        )


_SUPPORTED = {
    "rope_type": "split",
    "frequencies_precision": "float64",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
    "cross_attention_norm": True,
    "share_ff": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "caption_proj_before_connector": False,
}


def _check_equal(key: str, got: int, want: int) -> None:
    if got != want:
        raise InputError(f"checkpoint config: transformer.{key} is {got}, expected {want}")


class Modality(NamedTuple):
    """The tokens of one modality and what conditions them.

    Positions are (start, end) per axis and token: seconds, pixel rows, pixel columns for video,
    seconds for audio; float32. The batch axis of positions may be 1. `clean` counts the leading
    tokens of each sample whose timestep is 0; the others have `sigma`, 0..1. `context_len` counts
    the text tokens in use; None means all of them.
    """

    latents: Float[Array, "b t c"]
    positions: Float[Array, "#b n t 2"]
    context: Float[Array, "b s e"]
    sigma: Float[Array, " b"]
    clean: Int[Array, " b"]
    context_len: Int[Array, " b"] | None = None


class Skip(NamedTuple):
    """Attention that a guidance pass does without, by block and sample.

    A skipped self-attention passes its values on; one between the modalities adds nothing.
    """

    video_self: Bool[Array, "l b"]
    audio_self: Bool[Array, "l b"]
    audio_to_video: Bool[Array, "l b"]
    video_to_audio: Bool[Array, "l b"]


class Conditioning(NamedTuple):
    """What a block needs to know of one stream; axis 2 of the modulations is (clean, noisy)."""

    clean: Bool[Array, "b t"]
    modulation: Float[Array, "b 2 r d"]
    cross_modulation: Float[Array, "b 2 5 d"]
    rope: tuple[Array, Array]
    cross_rope: tuple[Array, Array]
    context: Float[Array, "b s d"]
    context_len: Int[Array, " b"] | None

    def select(self, values: Float[Array, "b 2 d"]) -> Float[Array, "b t d"]:
        """Per token, the clean or the noisy value."""
        return jnp.where(self.clean[..., None], values[:, :1], values[:, 1:])


# Angles reach 1000 rad, so the last bit matters (1e-6 of the outputs): the exponent is rounded to
# float32 as in the reference, its exponential correctly.
_EXPONENTS = np.float32(-math.log(10000)) * np.arange(128, dtype=np.float32) / 128
_TIMESTEP_FREQUENCIES = np.exp(_EXPONENTS.astype(np.float64)).astype(np.float32)


class AdaLN(nnx.Module):
    """Sinusoidal timestep embedding, two linears, and `rows` modulation vectors of it."""

    def __init__(self, dim: int, rows: int):
        self.emb = nnx.Dict({"timestep_embedder": TwoLinears(256, dim)})
        self.linear = Linear(dim, rows * dim)
        self.rows = rows

    def __call__(
        self, timesteps: Float[Array, "b n"], dtype: Any
    ) -> tuple[Float[Array, "b n r d"], Float[Array, "b n d"]]:
        """Modulation rows and the embedding itself, for timesteps in 0..1000."""
        angles = timesteps[..., None].astype(jnp.float32) * _TIMESTEP_FREQUENCIES
        wave = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(dtype)
        embedded = self.emb["timestep_embedder"](wave, jax.nn.silu)
        rows = self.linear(jax.nn.silu(embedded))
        return rows.reshape(*timesteps.shape, self.rows, -1), embedded


class StreamEnds(nnx.Module):
    """A modality's way into the blocks and out of them."""

    def __init__(self, config: TransformerConfig, stream: StreamConfig):
        dim = stream.dim
        self.patchify_proj = Linear(stream.in_channels, dim)
        self.caption_projection = TwoLinears(config.caption_channels, dim)
        self.adaln_single = AdaLN(dim, rows=6)
        self.cross_adaln = AdaLN(dim, rows=4)
        self.cross_gate_adaln = AdaLN(dim, rows=1)
        self.scale_shift_table = Frozen(jnp.zeros((2, dim)))
        self.proj_out = Linear(dim, stream.out_channels)
        self.config = config
        self.stream = stream

    def enter(
        self, m: Modality, cross_sigma: Float[Array, "b 2"]
    ) -> tuple[Float[Array, "b t d"], Conditioning, Float[Array, "b 2 d"]]:
        """Hidden tokens, their conditioning, and the timestep embedding that `leave` wants."""
        config, dtype = self.config, m.latents.dtype
        sigma = jnp.stack([jnp.zeros_like(m.sigma), m.sigma], 1)
        modulation, embedded = self.adaln_single(sigma * config.timestep_scale, dtype)
        cross = cross_sigma * config.timestep_scale
        gate_factor = config.cross_gate_timestep_scale / config.timestep_scale
        cross_rows, _ = self.cross_adaln(cross, dtype)
        cross_gate, _ = self.cross_gate_adaln(cross * gate_factor, dtype)
        context = self.caption_projection(
            m.context.astype(dtype), lambda x: jax.nn.gelu(x, approximate=True)
        )
        conditioning = Conditioning(
            clean=jnp.arange(m.latents.shape[1]) < m.clean[:, None],
            modulation=modulation,
            cross_modulation=jnp.concatenate([cross_rows, cross_gate], 2),
            rope=self._rope(m.positions, self.stream.dim, self.stream.max_pos),
            cross_rope=self._rope(
                m.positions[:, :1],
                config.audio.dim,
                (max(config.video.max_pos[0], config.audio.max_pos[0]),),
            ),
            context=context,
            context_len=m.context_len,
        )
        return self.patchify_proj(m.latents), conditioning, embedded

    def leave(
        self, x: Float[Array, "b t d"], cond: Conditioning, embedded: Float[Array, "b 2 d"]
    ) -> Float[Array, "b t c"]:
        """Velocity of every token."""
        rows = self.scale_shift_table[...] + embedded[:, :, None]
        x32 = x.astype(jnp.float32)
        normed = jax.nn.standardize(x32, epsilon=self.config.norm_eps)
        x32 = normed * (1 + cond.select(rows[:, :, 1])) + cond.select(rows[:, :, 0])
        return self.proj_out(x32.astype(x.dtype))

    def _rope(
        self, positions: Float[Array, "b n t 2"], dim: int, max_pos: tuple[float, ...]
    ) -> tuple[Array, Array]:
        middle = (positions[..., 0] + positions[..., 1]) / 2
        config = self.config
        grid = frequency_grid(config.rope_theta, len(max_pos), dim)
        return rotary_table(middle, max_pos, grid, dim, self.stream.heads)


class Stream(nnx.Module):
    """One modality's half of a block.

    Rows of `scale_shift_table`: shift, scale, gate of the self-attention, then of the
    feed-forward. Rows of `cross_scale_shift_table`: scale and shift for audio-to-video, scale and
    shift for video-to-audio, then the gate of the direction in which this stream is the query.
    """

    def __init__(self, config: TransformerConfig, stream: StreamConfig):
        dim, heads, eps = stream.dim, stream.heads, config.norm_eps
        self.attn1 = Attention(dim, dim, heads, stream.head_dim, eps)
        self.attn2 = Attention(dim, dim, heads, stream.head_dim, eps)
        self.ff = FeedForward(dim)
        self.scale_shift_table = Frozen(jnp.zeros((6, dim)))
        self.cross_scale_shift_table = Frozen(jnp.zeros((5, dim)))
        self.eps = eps

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
        x = _add(x, gate, update)
        # LTX-2.3 modulates this attention too (rows 6-8), and its context (prompt AdaLN).
        y = rms_norm(x, self.eps)
        return x + self.attn2(y, cond.context, context_len=cond.context_len, execution=execution)

    def feed_forward(self, x: Float[Array, "b t d"], cond: Conditioning) -> Float[Array, "b t d"]:
        shift, scale, gate = self._rows(cond, slice(3, 6))
        return _add(x, gate, self.ff(_modulate(rms_norm(x, self.eps), scale, shift)))

    def for_cross(
        self, x: Float[Array, "b t d"], cond: Conditioning
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Normed x as modulated for audio-to-video and for video-to-audio, and the gate."""
        rows = self.cross_scale_shift_table[...] + cond.cross_modulation
        a2v_scale, a2v_shift, v2a_scale, v2a_shift, gate = (
            cond.select(rows[:, :, i]) for i in range(5)
        )
        normed = rms_norm(x, self.eps)
        a2v = _modulate(normed, a2v_scale, a2v_shift)
        return a2v, _modulate(normed, v2a_scale, v2a_shift), gate

    def _rows(self, cond: Conditioning, which: slice) -> list[Array]:
        rows = self.scale_shift_table[which] + cond.modulation[:, :, which]
        return [cond.select(rows[:, :, i]) for i in range(rows.shape[2])]


def _modulate(x: Array, scale: Array, shift: Array) -> Array:
    """x (1 + scale) + shift, where the modulation is float32 and x may be bfloat16."""
    return (x * (1 + scale) + shift).astype(x.dtype)


def _add(x: Array, gate: Array, update: Array) -> Array:
    """The gated residual add, rounded once."""
    return (x + gate * update).astype(x.dtype)


class Block(nnx.Module):
    """A video stream, an audio stream, and the attention between them."""

    def __init__(self, config: TransformerConfig):
        video, audio, eps = config.video, config.audio, config.norm_eps
        self.video = Stream(config, video)
        self.audio = Stream(config, audio)
        self.audio_to_video = Attention(video.dim, audio.dim, audio.heads, audio.head_dim, eps)
        self.video_to_audio = Attention(audio.dim, video.dim, audio.heads, audio.head_dim, eps)

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
    (cos, sin), skip_x = x_side
    (context_cos, context_sin), skip = context_side
    out = attn(
        x[:, skip_x:],
        context[:, skip:],
        (cos[:, skip_x:], sin[:, skip_x:]),
        (context_cos[:, skip:], context_sin[:, skip:]),
        execution=execution,
    )
    bias: Any = attn.to_out[0].bias
    rest = jnp.broadcast_to(bias[...].astype(out.dtype), (len(x), skip_x, out.shape[2]))
    return jnp.concatenate([rest, out], 1)


_BLOCK_INPUT = "block_input"


def _attention_is_saved(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Whether this is flash attention, whose backward pass wants its statistics too."""
    return "dot_product_attention_fwd" in primitive.name


_saveable = jax.checkpoint_policies
_POLICIES = {
    "full": None,
    "attention": _saveable.save_from_both_policies(
        _saveable.save_only_these_names(ATTENTION), _attention_is_saved
    ),
    "offload": _saveable.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Transformer(nnx.Module):
    """Velocities of all video and audio tokens; the blocks are one stacked module under a scan."""

    def __init__(self, config: TransformerConfig):
        self.config = config
        self.video = StreamEnds(config, config.video)
        self.audio = StreamEnds(config, config.audio)
        self.blocks = nnx.vmap(lambda: Block(config), axis_size=config.layers)()

    def __call__(
        self,
        video: Modality,
        audio: Modality,
        *,
        cross_timestep: CrossTimestep,
        isolated: tuple[int, int] = (0, 0),
        skip: Skip | None = None,
        execution: Execution = ONE_DEVICE,
        prepare_block: Any = None,
    ) -> tuple[Float[Array, "b tv cv"], Float[Array, "b ta ca"]]:
        """Predict the velocity (noise - clean latents) of every token.

        `isolated` is how many leading tokens of (video, audio) take no part in the attention
        between the modalities: the reference lengths, or (0, 0). `skip` leaves attention out.
        `prepare_block(block, index)` may change each block before it runs (dropout keys).
        """
        own = cross_timestep == "own"
        v, v_cond, v_embedded = self.video.enter(video, _cross_sigma(video, audio, own))
        a, a_cond, a_embedded = self.audio.enter(audio, _cross_sigma(audio, video, own))
        graphdef, state = nnx.split(self.blocks)

        def body(carry: Any, xs: Any) -> Any:
            weights, index, skip_here = xs
            weights = weights if execution.gather is None else execution.gather(weights)
            block: Any = nnx.merge(graphdef, weights)
            if prepare_block is not None:
                prepare_block(block, index)
            v, a = (checkpoint_name(x, _BLOCK_INPUT) for x in carry)
            return block(v, a, v_cond, a_cond, isolated, skip_here, execution), None

        if execution.remat != "none":
            policy = _POLICIES[execution.remat]
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        xs = (nnx.as_pure(state), jnp.arange(self.config.layers), skip)
        (v, a), _ = jax.lax.scan(body, (v, a), xs)
        return self.video.leave(v, v_cond, v_embedded), self.audio.leave(a, a_cond, a_embedded)


def _cross_sigma(own: Modality, other: Modality, use_own: bool) -> Float[Array, "b 2"]:
    """Timesteps (of clean, of noisy tokens) that modulate the audio-video attention, 0..1."""
    if use_own:
        return jnp.stack([jnp.zeros_like(own.sigma), own.sigma], 1)
    return jnp.stack([other.sigma, other.sigma], 1)
