"""Sampling: Euler steps on LTX-2's sigma schedule, with guidance, as one compiled loop.

From noise (sigma 1) to a clean target (sigma 0). Each step predicts the clean tokens ("denoised")
by up to four passes of the model, combines them, and steps towards the result. Reference tokens,
and the first latent frame where it is given, stay clean at timestep 0.

Source of the formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/components/{schedulers,
guiders,diffusion_steps}.py; packages/ltx-pipelines/src/ltx_pipelines/utils/{samplers,helpers}.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import ONE_DEVICE, Execution
from justdubit_jax.models.block import Skip
from justdubit_jax.models.transformer import Modality
from justdubit_jax.models.transformer_config import CrossTimestep

DEFAULT_TOKENS = 4096  # the schedule's length where none is given
TERMINAL = 0.1  # the last sigma before 0

StgMode = Literal["stg_av", "stg_v"]


def sigmas(steps: int, tokens: int = DEFAULT_TOKENS) -> Float[np.ndarray, " n"]:
    """Noise levels from 1 to 0; more latent video tokens (f * y * x) keep the noise for longer.

    Float32 in the reference's order of operations, since little is left of 1 - level where tokens
    are many. Raises InputError if there is no step.
    """
    if steps < 1:
        raise InputError(f"sampling steps: got {steps}, expected at least 1")
    if steps == 1:
        return np.array([1, 0], np.float32)
    one, slope = np.float32(1), (2.05 - 0.95) / (4096 - 1024)
    shift = min(slope * tokens + (0.95 - slope * 1024), 80)  # float32 ends at exp(88)
    boost = np.float32(np.exp(shift))
    index, step = np.arange(steps, dtype=np.float32), one / np.float32(steps)
    line = np.where(index < (steps + 1) // 2, one - step * index, step * (steps - index))
    levels = one / (boost + (one / line - one)) * boost
    room = (one - levels[-1]) / np.float32(1 - TERMINAL)
    if room > 0:  # 0 where all levels round to 1
        levels = one - (one - levels) / room
    return np.append(levels, np.float32(0))


def to_denoised(
    x: Float[Array, "*b c"], velocity: Float[Array, "*b c"], sigma: Float[Array, "..."] | float
) -> Float[Array, "*b c"]:
    """The clean tokens that a velocity (noise - clean) at noise level sigma points to."""
    return x - velocity * sigma


def to_velocity(
    x: Float[Array, "*b c"], denoised: Float[Array, "*b c"], sigma: Float[Array, "..."] | float
) -> Float[Array, "*b c"]:
    """The inverse of `to_denoised`; sigma must not be 0."""
    return (x - denoised) / sigma


def euler_step(
    x: Float[Array, "*b c"], denoised: Float[Array, "*b c"], sigma: Any, next_sigma: Any
) -> Float[Array, "*b c"]:
    """From one noise level to the next, along the straight line to the denoised tokens."""
    return x + to_velocity(x, denoised, sigma) * (next_sigma - sigma)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How one modality's prediction is pushed away from worse ones. The defaults are all off.

    `cfg` scales away from the negative prompt (off: 1); `stg` from the prediction whose
    self-attention in `stg_blocks` of this modality (None: all) is replaced by its values (off: 0);
    `modality` from the prediction without the other modality (off: 1). `rescale` brings the
    standard deviation back to that of the plain prediction (0: not at all, 1: fully).
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] | None = ()

    def combine(
        self,
        plain: Float[Array, "*b c"],
        negative: Float[Array, "*b c"] | None,
        perturbed: Float[Array, "*b c"] | None,
        alone: Float[Array, "*b c"] | None,
    ) -> Float[Array, "*b c"]:
        """Guided prediction; a prediction whose guidance is off is not used and may be None."""
        guided = plain
        for scale, other in (
            (self.cfg - 1, negative),
            (self.stg, perturbed),
            (self.modality - 1, alone),
        ):
            if scale and other is not None:
                guided = guided + scale * (plain - other)
        if self.rescale:
            factor = jnp.std(plain, ddof=1) / jnp.std(guided, ddof=1)
            guided = guided * (self.rescale * factor + (1 - self.rescale))
        return guided


def stg_blocks(
    mode: StgMode, blocks: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The `stg_blocks` of (video, audio): `stg_v` perturbs the self-attention of video alone.

    The scale stays that of both: audio too is pushed away from the perturbed prediction
    (packages/ltx-trainer/src/ltx_trainer/validation_sampler.py).
    """
    chosen = None if blocks is None else tuple(blocks)
    return chosen, (chosen if mode == "stg_av" else ())


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. `isolate`, `cross_timestep` and `dtype` are the training's own.

    `batched` runs a step's passes as one batch; otherwise they run one after the other, in the
    memory of one. The results are equal up to rounding.
    """

    video: Guidance
    audio: Guidance
    isolate: bool
    cross_timestep: CrossTimestep
    dtype: Any
    batched: bool
    execution: Execution = ONE_DEVICE

    @property
    def passes(self) -> tuple[str, ...]:
        """The predictions that a step needs, by their names in `Guidance.combine`."""
        both = self.video, self.audio
        wanted = {
            "plain": True,
            "negative": any(g.cfg != 1 for g in both),
            "perturbed": any(g.stg != 0 for g in both),
            "alone": any(g.modality != 1 for g in both),
        }
        return tuple(name for name in wanted if wanted[name])

    def check(self, layers: int) -> None:
        """Raises InputError if a perturbed block is not one of the model's `layers`."""
        for guidance in (self.video, self.audio):
            for block in guidance.stg_blocks or ():
                if not 0 <= block < layers:
                    raise InputError(f"stg_blocks: got {block}, expected 0 to {layers - 1}")


class Conditioned(NamedTuple):
    """One modality of what is to be sampled, float32; positions cover [reference | target].

    `noise` covers the whole target; `given` are clean tokens that stand in the place of its first
    ones: the first latent frame, of an image. `negative` is the text of the negative prompt, as
    long as `context`; without cfg it may be None.
    """

    noise: Float[Array, "b t c"]
    reference: Float[Array, "b r c"]
    positions: Float[Array, "#b n rt 2"]
    context: Float[Array, "b s e"]
    negative: Float[Array, "b s e"] | None = None
    given: Float[Array, "b g c"] | None = None

    @property
    def clean(self) -> int:
        """How many leading tokens stay as they are."""
        return self.reference.shape[1] + (0 if self.given is None else self.given.shape[1])

    def start(self) -> Float[Array, "b rt c"]:
        """The tokens at sigma 1."""
        parts = [self.reference, self.noise[:, self.clean - self.reference.shape[1] :]]
        if self.given is not None:
            parts.insert(1, self.given)
        return jnp.concatenate(parts, 1).astype(jnp.float32)

    def is_clean(self) -> Bool[np.ndarray, "rt 1"]:
        """Per token."""
        count = self.reference.shape[1] + self.noise.shape[1]
        return (np.arange(count) < self.clean)[:, None]


class Pass(NamedTuple):
    """What sets one pass of the model apart from the others: its texts, and what is skipped."""

    video_context: Float[Array, "b s e"]
    audio_context: Float[Array, "b s e"]
    skip: Skip | None


Tokens = tuple[Float[Array, "b tv cv"], Float[Array, "b ta ca"]]


def denoise(
    model: Any,
    video: Conditioned,
    audio: Conditioned,
    levels: Any,
    settings: Settings,
    tokens: Tokens | None = None,
) -> Tokens:
    """Sample video and audio tokens [reference | target], float32, along `levels` (see `sigmas`).

    `tokens` are those at the first level, by default the noise of sigma 1; so a schedule may be
    gone through in pieces. `model` is a Transformer, merged inside the caller's jit, to which
    `settings` are static. The loop is one scan: the compiled program does not grow with the number
    of steps. Raises InputError, while tracing, on a block outside the model.
    """

    def step(tokens: Tokens, pair: Any) -> tuple[Tokens, None]:
        guided = predict(model, video, audio, tokens, pair[0], settings)
        v, a = (
            jnp.where(stream.is_clean(), x, euler_step(x, denoised, *pair))
            for stream, x, denoised in zip((video, audio), tokens, guided, strict=True)
        )
        return (v, a), None

    levels = jnp.asarray(levels, jnp.float32)
    start = (video.start(), audio.start()) if tokens is None else tokens
    tokens, _ = jax.lax.scan(step, start, (levels[:-1], levels[1:]))
    return tokens


def predict(
    model: Any,
    video: Conditioned,
    audio: Conditioned,
    tokens: Tokens,
    sigma: Float[Array, ""] | float,
    settings: Settings,
) -> Tokens:
    """The guided prediction of the clean tokens at one noise level, reference tokens included."""
    layers, names = model.config.layers, settings.passes
    settings.check(layers)
    passes = [_make_pass(name, video, audio, settings, layers) for name in names]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *passes)

    def run(one: Pass) -> Any:
        return _run(model, one, video, audio, tokens, sigma, settings)

    if settings.batched:
        batch = len(video.noise)
        predicted = [_from_batch(x, batch) for x in run(_as_batch(stacked))]
    else:
        predicted = jax.lax.map(run, stacked)
    guided = []
    for guidance, prediction in zip((settings.video, settings.audio), predicted, strict=True):
        by_name = dict(zip(names, prediction, strict=True))
        others = [by_name.get(name) for name in ("negative", "perturbed", "alone")]
        # Each sample on its own, which matters to the standard deviations.
        guided.append(jax.vmap(guidance.combine)(by_name["plain"], *others))
    return guided[0], guided[1]


def _make_pass(
    name: str, video: Conditioned, audio: Conditioned, settings: Settings, layers: int
) -> Pass:
    """The pass of that name; it has no flags where none of a step's passes skips anything."""

    def flags(blocks: tuple[int, ...] | None, only_in: str) -> Bool[Array, "l b"]:
        skipped = np.zeros((layers, len(video.noise)), bool)
        if name == only_in:
            skipped[slice(None) if blocks is None else list(blocks)] = True
        return jnp.asarray(skipped)

    skip = None
    if {"perturbed", "alone"} & set(settings.passes):
        skip = Skip(
            video_self=flags(settings.video.stg_blocks, "perturbed"),
            audio_self=flags(settings.audio.stg_blocks, "perturbed"),
            audio_to_video=flags(None, "alone"),
            video_to_audio=flags(None, "alone"),
        )
    if name == "negative":
        return Pass(_negative(video, settings.video), _negative(audio, settings.audio), skip)
    return Pass(video.context, audio.context, skip)


def _negative(stream: Conditioned, guidance: Guidance) -> Float[Array, "b s e"]:
    if stream.negative is None and guidance.cfg != 1:
        raise ValueError(f"guidance: cfg is {guidance.cfg}, but there is no negative context")
    return stream.context if stream.negative is None else stream.negative


def _as_batch(stacked: Any) -> Pass:
    """Passes on a leading axis as one pass over a batch that is as many times larger.

    All passes of the first sample come first: where the batch is split over devices, each goes on
    with its own samples and nothing moves between them.
    """

    def joined(x: Array, axis: int) -> Array:
        shape = (*x.shape[1 : axis + 1], -1, *x.shape[axis + 2 :])
        return jnp.moveaxis(x, 0, axis + 1).reshape(shape)

    video, audio, skip = stacked
    return Pass(joined(video, 0), joined(audio, 0), jax.tree.map(lambda x: joined(x, 1), skip))


def _from_batch(x: Float[Array, "n t c"], batch: int) -> Float[Array, "p b t c"]:
    """The passes' results on a leading axis again."""
    return jnp.moveaxis(x.reshape(batch, -1, *x.shape[1:]), 1, 0)


def _run(
    model: Any,
    one: Pass,
    video: Conditioned,
    audio: Conditioned,
    tokens: Tokens,
    sigma: Any,
    settings: Settings,
) -> tuple[Float[Array, "p tv cv"], Float[Array, "p ta ca"]]:
    """The clean tokens as one pass predicts them; its batch is some multiple of the tokens'."""
    batch = len(one.video_context)
    times = batch // len(tokens[0])

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, times, axis=0)

    modalities = [
        Modality(
            latents=repeat(x).astype(settings.dtype),
            positions=stream.positions if len(stream.positions) == 1 else repeat(stream.positions),
            context=context,
            sigma=jnp.full(batch, sigma, jnp.float32),
            clean=jnp.full(batch, stream.clean),
        )
        for stream, x, context in zip((video, audio), tokens, one[:2], strict=True)
    ]
    references = video.reference.shape[1], audio.reference.shape[1]
    velocities = model(
        *modalities,
        cross_timestep=settings.cross_timestep,
        isolated=references if settings.isolate else (0, 0),
        skip=one.skip,
        execution=settings.execution,
    )
    v, a = (
        to_denoised(repeat(x), velocity.astype(jnp.float32), jnp.where(stream.is_clean(), 0, sigma))
        for stream, x, velocity in zip((video, audio), tokens, velocities, strict=True)
    )
    return v, a
