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

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from justdubit_jax.models.attention import (
    ATTENTION,
    KEYS,
    ONE_DEVICE,
    QUERIES,
    Execution,
    frequency_grid,
    rotary_table,
)
from justdubit_jax.models.block import Block, Conditioning, Skip
from justdubit_jax.models.layers import Frozen, Linear, TwoLinears
from justdubit_jax.models.transformer_config import CrossTimestep, StreamConfig, TransformerConfig

# Changes a (transient) block of that index before it runs.
PrepareBlock = Callable[[Block, Array], None]


# What is called as a Transformer is, and answers with the velocities of both modalities.
VelocityModel = Callable[..., tuple[Array, Array]]


class Modality(NamedTuple):
    """The tokens of one modality and what conditions them.

    Positions are (start, end) per axis and token: seconds, pixel rows, pixel columns for video,
    seconds for audio; float32. The batch axis of positions may be 1. `clean_count` is how many
    leading tokens of each sample have timestep 0; the others have `sigma`, 0..1. `context_len` is
    how many text tokens are in use; None means all of them.
    """

    latents: Float[Array, "b t c"]
    positions: Float[Array, "#b n t 2"]
    context: Float[Array, "b s e"]
    sigma: Float[Array, " b"]
    clean_count: Int[Array, " b"]
    context_len: Int[Array, " b"] | None = None


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
        angles = timesteps[..., None].astype(jnp.float32) * _TIMESTEP_FREQUENCIES[None, None]
        wave = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(dtype)
        embedded = self.emb["timestep_embedder"](wave, jax.nn.silu)
        rows = self.linear(jax.nn.silu(embedded))
        return rows.reshape(*timesteps.shape, self.rows, -1), embedded


class StreamEnds(nnx.Module):
    """A modality's way into the blocks and out of them."""

    def __init__(self, config: TransformerConfig, stream: StreamConfig):
        dim = stream.dim
        self.patchify_proj = Linear(stream.in_channels, dim)
        project, modulate = config.text_projection, config.text_modulation
        self.caption_projection = TwoLinears(stream.context_dim, dim) if project else None
        self.prompt_adaln_single = AdaLN(dim, rows=2) if modulate else None
        self.adaln_single = AdaLN(dim, config.modulation_rows)
        self.cross_adaln = AdaLN(dim, rows=4)
        self.cross_gate_adaln = AdaLN(dim, rows=1)
        self.scale_shift_table = Frozen(jnp.zeros((2, dim)))
        self.proj_out = Linear(dim, stream.out_channels)
        self.config = config
        self.stream = stream

    def enter(
        self, m: Modality, cross_sigma: Float[Array, "b 2"], cross_gate_sigma: Float[Array, "b 2"]
    ) -> tuple[Float[Array, "b t d"], Conditioning, Float[Array, "b 2 d"]]:
        """Hidden tokens, their conditioning, and the timestep embedding that `leave` wants."""
        config, dtype = self.config, m.latents.dtype
        sigma = jnp.stack([jnp.zeros_like(m.sigma), m.sigma], 1)
        modulation, embedded = self.adaln_single(sigma * config.timestep_scale, dtype)
        cross_rows, _ = self.cross_adaln(cross_sigma * config.timestep_scale, dtype)
        gate_factor = config.cross_gate_timestep_scale / config.timestep_scale
        cross_gate = cross_gate_sigma * config.timestep_scale * gate_factor
        cross_gate, _ = self.cross_gate_adaln(cross_gate, dtype)
        context, context_modulation = m.context.astype(dtype), None
        if self.caption_projection is not None:
            context = self.caption_projection(context, lambda x: jax.nn.gelu(x, approximate=True))
        if self.prompt_adaln_single is not None:
            own = m.sigma[:, None] * config.timestep_scale
            context_modulation, _ = self.prompt_adaln_single(own, dtype)
        conditioning = Conditioning(
            is_clean=jnp.arange(m.latents.shape[1])[None] < m.clean_count[:, None],
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
            context_modulation=context_modulation,
        )
        return self.patchify_proj(m.latents), conditioning, embedded

    def leave(
        self, x: Float[Array, "b t d"], cond: Conditioning, embedded: Float[Array, "b 2 d"]
    ) -> Float[Array, "b t c"]:
        """Velocity of every token."""
        rows = self.scale_shift_table[...][None, None] + embedded[:, :, None]
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
        return rotary_table(middle, max_pos, grid, dim, self.stream.attention.heads)


_BLOCK_INPUT = "block_input"


def _attention_is_saved(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Whether this is flash attention, whose backward pass wants its statistics too."""
    return "dot_product_attention_fwd" in primitive.name


_saveable = jax.checkpoint_policies


def _keeping(*names: str) -> Callable[..., Any]:
    return _saveable.save_from_both_policies(
        _saveable.save_only_these_names(*names), _attention_is_saved
    )


_POLICIES = {
    "full": None,
    "attention": _keeping(ATTENTION),
    "keys": _keeping(ATTENTION, KEYS),
    "queries": _keeping(ATTENTION, KEYS, QUERIES),
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
        prepare_block: PrepareBlock | None = None,
    ) -> tuple[Float[Array, "b tv cv"], Float[Array, "b ta ca"]]:
        """Predict the velocity (noise - clean latents) of every token.

        `isolated` is how many leading tokens of (video, audio) take no part in the attention
        between the modalities: the reference lengths, or (0, 0). `skip` leaves attention out.
        `prepare_block(block, index)` may change each block before it runs (dropout keys).
        """
        v_sigmas = _cross_sigmas(video, audio, cross_timestep)
        a_sigmas = _cross_sigmas(audio, video, cross_timestep)
        v, v_cond, v_embedded = self.video.enter(video, *v_sigmas)
        a, a_cond, a_embedded = self.audio.enter(audio, *a_sigmas)
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


def _cross_sigmas(
    own: Modality, other: Modality, rule: CrossTimestep
) -> tuple[Float[Array, "b 2"], Float[Array, "b 2"]]:
    """Timesteps that modulate the audio-video attention: of scale and shift, and of the gate.

    Each for clean and for noisy tokens, 0..1.
    """
    own_sigma = jnp.stack([jnp.zeros_like(own.sigma), own.sigma], 1)
    other_sigma = jnp.stack([other.sigma, other.sigma], 1)
    scale_and_shift = other_sigma if rule == "other" else own_sigma
    gate = own_sigma if rule == "own" else other_sigma
    return scale_and_shift, gate
