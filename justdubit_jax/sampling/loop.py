"""Sampling: Euler steps with guidance, as one compiled loop.

From noise (sigma 1) to a clean target (sigma 0). Each step predicts the clean tokens ("denoised")
by up to four passes of the model, combines them, and steps towards the result. Reference tokens,
and the first latent frame where it is given, stay clean at timestep 0.

Source: Lightricks/LTX-2 packages/ltx-pipelines/src/ltx_pipelines/utils/{samplers,helpers}.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from justdubit_jax.models.block import Skip
from justdubit_jax.models.transformer import Modality, Transformer
from justdubit_jax.sampling.guidance import Guidance, Prediction, SamplingSettings
from justdubit_jax.sampling.schedule import euler_step, to_denoised


class Conditioned(NamedTuple):
    """One modality of what is to be sampled, float32; positions cover [reference | target].

    `noise` covers the whole target; `first_frame` are clean tokens that stand in the place of its
    first ones: the first latent frame, of an image. `negative` is the text of the negative prompt,
    as long as `context`; without cfg it may be None.
    """

    noise: Float[Array, "b t c"]
    reference: Float[Array, "b r c"]
    positions: Float[Array, "#b n rt 2"]
    context: Float[Array, "b s e"]
    negative: Float[Array, "b s e"] | None = None
    first_frame: Float[Array, "b g c"] | None = None

    @property
    def clean_count(self) -> int:
        """How many leading tokens stay as they are."""
        first = 0 if self.first_frame is None else self.first_frame.shape[1]
        return self.reference.shape[1] + first

    def start(self) -> Float[Array, "b rt c"]:
        """The tokens at sigma 1."""
        parts = [self.reference, self.noise[:, self.clean_count - self.reference.shape[1] :]]
        if self.first_frame is not None:
            parts.insert(1, self.first_frame)
        return jnp.concatenate(parts, 1).astype(jnp.float32)

    def is_clean(self) -> Bool[np.ndarray, "1 rt 1"]:
        """Per token."""
        count = self.reference.shape[1] + self.noise.shape[1]
        return (np.arange(count) < self.clean_count)[None, :, None]


class Pass(NamedTuple):
    """What sets one pass of the model apart from the others: its texts, and what is skipped."""

    video_context: Float[Array, "b s e"]
    audio_context: Float[Array, "b s e"]
    skip: Skip | None


# Of both modalities, [reference | target].
TokenPair = tuple[Float[Array, "b tv cv"], Float[Array, "b ta ca"]]
Levels = Float[Array, " n"] | Float[np.ndarray, " n"]
Sigma = Float[Array, ""] | Float[np.ndarray, ""] | float


def denoise(
    model: Transformer,
    video: Conditioned,
    audio: Conditioned,
    levels: Levels,
    settings: SamplingSettings,
    tokens: TokenPair | None = None,
) -> TokenPair:
    """Sample video and audio tokens [reference | target], float32, along `levels` (see `sigmas`).

    `tokens` are those at the first level, by default the noise of sigma 1; so a schedule may be
    gone through in pieces. `model` is a Transformer, merged inside the caller's jit, to which
    `settings` are static. The loop is one scan: the compiled program does not grow with the number
    of steps. Raises InputError, while tracing, on a block outside the model.
    """

    def step(tokens: TokenPair, pair: tuple[Array, Array]) -> tuple[TokenPair, None]:
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
    model: Transformer,
    video: Conditioned,
    audio: Conditioned,
    tokens: TokenPair,
    sigma: Sigma,
    settings: SamplingSettings,
) -> TokenPair:
    """The guided prediction of the clean tokens at one noise level, reference tokens included."""
    layers, predictions = model.config.layers, settings.passes
    settings.check(layers)
    passes = [_make_pass(p, video, audio, settings, layers) for p in predictions]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *passes)

    def run(one: Pass) -> Any:
        return _run(model, one, video, audio, tokens, sigma, settings)

    if settings.batched:
        batch = len(video.noise)
        predicted = [_from_batch(x, batch) for x in run(_as_batch(stacked))]
    else:
        predicted = jax.lax.map(run, stacked)
    guided = []
    for guidance, results in zip((settings.video, settings.audio), predicted, strict=True):
        found = dict(zip(predictions, results, strict=True))
        others = (found.get(p) for p in Prediction if p != Prediction.PLAIN)
        # Each sample on its own, which matters to the standard deviations.
        guided.append(jax.vmap(guidance.combine)(found[Prediction.PLAIN], *others))
    return guided[0], guided[1]


def _make_pass(
    prediction: Prediction,
    video: Conditioned,
    audio: Conditioned,
    settings: SamplingSettings,
    layers: int,
) -> Pass:
    """The pass that makes a prediction; no flags where none of a step's passes skips anything."""

    def flags(blocks: tuple[int, ...] | None, only_in: Prediction) -> Bool[Array, "l b"]:
        skipped = np.zeros((layers, len(video.noise)), bool)
        if prediction == only_in:
            skipped[slice(None) if blocks is None else list(blocks)] = True
        return jnp.asarray(skipped)

    skip = None
    if {Prediction.PERTURBED, Prediction.ALONE} & set(settings.passes):
        skip = Skip(
            video_self=flags(settings.video.stg_blocks, Prediction.PERTURBED),
            audio_self=flags(settings.audio.stg_blocks, Prediction.PERTURBED),
            audio_to_video=flags(None, Prediction.ALONE),
            video_to_audio=flags(None, Prediction.ALONE),
        )
    if prediction == Prediction.NEGATIVE:
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
    model: Transformer,
    one: Pass,
    video: Conditioned,
    audio: Conditioned,
    tokens: TokenPair,
    sigma: Sigma,
    settings: SamplingSettings,
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
            clean_count=jnp.full(batch, stream.clean_count),
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
