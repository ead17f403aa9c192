"""The training objective: noise the target, predict its velocity, weigh the face.

A batch holds clean target and reference latents as tokens. Both modalities of a sample share one
sigma; noisy = (1 - sigma) clean + sigma noise, and the model predicts noise - clean. Reference
tokens, and the first latent frame where it is given as a condition, stay clean and carry no loss.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.data.batch import Batch, Stream
from justdubit_jax.models.transformer import Modality


class Draw(NamedTuple):
    """Everything random in a step: noise levels, noise, and who gets the first frame."""

    sigma: Float[Array, " b"]
    video_noise: Float[Array, "b tv c"]
    audio_noise: Float[Array, "b ta c"]
    first_frame: Bool[Array, " b"]


@dataclasses.dataclass(frozen=True)
class MaskLoss:
    """How the face mask weighs the video loss."""

    mask_loss_weight: float
    background_loss_weight: float
    mask_threshold: float
    use_soft_masks: bool

    def weights(self, mask: Float[Array, "b t"]) -> Float[Array, "b t"]:
        """Soft masks blend the two weights, hard ones choose by the threshold."""
        face, background = self.mask_loss_weight, self.background_loss_weight
        if self.use_soft_masks:
            return background + (face - background) * mask
        return jnp.where(mask > self.mask_threshold, face, background)


@dataclasses.dataclass(frozen=True)
class SigmaSampling:
    """How noise levels are drawn: `mode` and its parameters, as in the torch trainer."""

    mode: Literal["shifted_logit_normal", "uniform"]
    std: float = 1.0
    min_value: float = 0.0
    max_value: float = 1.0

    def draw(self, key: Array, batch: int, video_tokens: int) -> Float[Array, " b"]:
        """Sigmas for clips of that many target video tokens."""
        if self.mode == "uniform":
            return jax.random.uniform(key, (batch,), jnp.float32, self.min_value, self.max_value)
        return shifted_logit_normal(jax.random.normal(key, (batch,)) * self.std, video_tokens)


def logit_shift(tokens: int) -> float:
    """0.95 at 1024 tokens, 2.05 at 4096, linear beyond both (ltx_trainer/timestep_samplers.py)."""
    return 0.95 + (2.05 - 0.95) / (4096 - 1024) * (tokens - 1024)


def shifted_logit_normal(normal: Float[Array, "*n"], tokens: int) -> Float[Array, "*n"]:
    """Standard normal draws to sigmas; longer clips get more noise."""
    return jax.nn.sigmoid(normal + logit_shift(tokens))


def draw(
    key: Array, batch: Batch, sampling: SigmaSampling, first_frame_p: float, frames: int
) -> Draw:
    """Draw a step's randomness; one-frame clips are never conditioned on their first frame."""
    size, tokens, _ = batch.video.target.shape
    sigma_key, video_key, audio_key, first_key = jax.random.split(key, 4)
    return Draw(
        sigma=sampling.draw(sigma_key, size, tokens),
        video_noise=jax.random.normal(video_key, batch.video.target.shape),
        audio_noise=jax.random.normal(audio_key, batch.audio.target.shape),
        first_frame=jax.random.bernoulli(first_key, first_frame_p if frames > 1 else 0.0, (size,)),
    )


def noised(
    stream: Stream,
    noise: Float[Array, "b t c"],
    sigma: Float[Array, " b"],
    given: Int[Array, " b"],
    dtype: Any,
) -> Modality:
    """Model input of one modality; the first `given` target tokens of a sample stay clean."""
    target = stream.target
    level = sigma[:, None, None]
    keep = jnp.arange(target.shape[1]) < given[:, None]
    noisy = jnp.where(keep[..., None], target, (1 - level) * target + level * noise)
    return Modality(
        latents=jnp.concatenate([stream.reference, noisy], 1).astype(dtype),
        positions=stream.positions,
        context=stream.context,
        sigma=sigma,
        clean=stream.reference.shape[1] + given,
        context_len=stream.context_len,
    )


def weighted_mean(error: Float[Array, "b t c"], weight: Float[Array, "b t"]) -> Float[Array, ""]:
    """sum(weight * error) / sum(weight) over the batch, and 0 where all weights are 0."""
    total = weight.sum()
    loss = (error.mean(-1) * weight).sum() / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, loss, 0)


class Errors(NamedTuple):
    """Squared velocity errors on target tokens; `counts` is 1 where a video token has a loss."""

    video: Float[Array, "b tv c"]
    audio: Float[Array, "b ta d"]
    counts: Float[Array, "b tv"]


def errors(
    model: Any,
    batch: Batch,
    draws: Draw,
    *,
    grid: tuple[int, int, int],
    isolate: bool,
    dtype: Any,
    **model_options: Any,
) -> Errors:
    """Run the model on a noised batch.

    `grid` is the target's latent (frames, rows, columns). `isolate` keeps reference tokens out of
    the attention between the modalities. The model runs in `dtype`; latents and noise come, and
    errors are taken, in float32. `model_options` go to the Transformer.
    """
    first = draws.first_frame.astype(jnp.int32) * (grid[1] * grid[2])
    video = noised(batch.video, draws.video_noise, draws.sigma, first, dtype)
    audio = noised(batch.audio, draws.audio_noise, draws.sigma, jnp.zeros_like(first), dtype)
    references = batch.video.reference.shape[1], batch.audio.reference.shape[1]
    predictions = model(video, audio, isolated=references if isolate else (0, 0), **model_options)
    video_error, audio_error = (
        jnp.square(prediction[:, skip:].astype(jnp.float32) - (noise - stream.target))
        for prediction, skip, noise, stream in zip(
            predictions,
            references,
            (draws.video_noise, draws.audio_noise),
            (batch.video, batch.audio),
            strict=True,
        )
    )
    counts = (jnp.arange(video_error.shape[1]) >= first[:, None]).astype(jnp.float32)
    return Errors(video_error, audio_error, counts)


def loss(
    model: Any, batch: Batch, draws: Draw, *, mask_loss: MaskLoss | None, **options: Any
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean velocity error of video plus audio targets, float32, and its terms.

    The face mask weighs the video's where there is one. `options` are those of `errors`.
    """
    error = errors(model, batch, draws, **options)
    weight = error.counts
    if mask_loss is not None and batch.face_mask is not None:
        weight = weight * mask_loss.weights(batch.face_mask)
    video_loss = weighted_mean(error.video, weight)
    audio_loss = error.audio.mean()
    total = video_loss + audio_loss
    return total, {"loss": total, "loss_video": video_loss, "loss_audio": audio_loss}
