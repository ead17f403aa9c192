"""The training objective: noise the target, predict its velocity, weigh the face.

A batch holds clean target and reference latents as tokens. Both modalities of a sample share one
sigma; noisy = (1 - sigma) clean + sigma noise, and the model predicts noise - clean. Reference
tokens, and the first latent frame where it is given as a condition, stay clean and carry no loss.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from justdubit_jax.data.batch import Batch, StreamTokens
from justdubit_jax.models.attention import ONE_DEVICE, Execution
from justdubit_jax.models.transformer import Modality, PrepareBlock, VelocityModel
from justdubit_jax.models.transformer_config import CrossTimestep


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


def noised(
    stream: StreamTokens,
    noise: Float[Array, "b t c"],
    sigma: Float[Array, " b"],
    first_tokens: Int[Array, " b"],
    dtype: DTypeLike,
) -> Modality:
    """Model input of one modality; the `first_tokens` of a sample's target stay clean."""
    target = stream.target
    level = sigma[:, None, None]
    keep = jnp.arange(target.shape[1])[None] < first_tokens[:, None]
    noisy = jnp.where(keep[..., None], target, (1 - level) * target + level * noise)
    return Modality(
        latents=jnp.concatenate([stream.reference, noisy], 1).astype(dtype),
        positions=stream.positions,
        context=stream.context,
        sigma=sigma,
        clean_count=stream.reference.shape[1] + first_tokens,
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


Terms = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a training minimises, as a function of the model, a batch and its randomness.

    The step, the plan and the held-out loss all call it, so that no option is missing in one of
    them. `isolate` keeps reference tokens out of the attention between the modalities. The model
    runs in `dtype`; latents and noise come, and errors are taken, in float32.
    """

    sampling: SigmaSampling
    first_frame_p: float  # how often a sample's first latent frame is given
    mask_loss: MaskLoss | None
    isolate: bool
    cross_timestep: CrossTimestep
    dtype: DTypeLike
    execution: Execution = ONE_DEVICE

    def draw(self, key: Array, batch: Batch, frames: int) -> Draw:
        """A step's randomness; one-frame clips are never conditioned on their first frame."""
        size, tokens, _ = batch.video.target.shape
        sigma_key, video_key, audio_key, first_key = jax.random.split(key, 4)
        first_p = self.first_frame_p if frames > 1 else 0.0
        return Draw(
            sigma=self.sampling.draw(sigma_key, size, tokens),
            video_noise=jax.random.normal(video_key, batch.video.target.shape),
            audio_noise=jax.random.normal(audio_key, batch.audio.target.shape),
            first_frame=jax.random.bernoulli(first_key, first_p, (size,)),
        )

    def errors(
        self,
        model: VelocityModel,
        batch: Batch,
        draws: Draw,
        grid: tuple[int, int, int],
        prepare_block: PrepareBlock | None = None,
    ) -> Errors:
        """Run the model on a noised batch; `grid` is the target's latent (frames, rows, columns).

        `prepare_block` goes to the model: it seeds the dropout of each block.
        """
        first = draws.first_frame.astype(jnp.int32) * (grid[1] * grid[2])
        none = jnp.zeros_like(first)
        video = noised(batch.video, draws.video_noise, draws.sigma, first, self.dtype)
        audio = noised(batch.audio, draws.audio_noise, draws.sigma, none, self.dtype)
        references = batch.video.reference.shape[1], batch.audio.reference.shape[1]
        velocities = model(
            video,
            audio,
            cross_timestep=self.cross_timestep,
            isolated=references if self.isolate else (0, 0),
            execution=self.execution,
            prepare_block=prepare_block,
        )
        video_error, audio_error = (
            jnp.square(velocity[:, count:].astype(jnp.float32) - (noise - stream.target))
            for velocity, count, noise, stream in zip(
                velocities,
                references,
                (draws.video_noise, draws.audio_noise),
                (batch.video, batch.audio),
                strict=True,
            )
        )
        counts = (jnp.arange(video_error.shape[1])[None] >= first[:, None]).astype(jnp.float32)
        return Errors(video_error, audio_error, counts)

    def terms(self, errors: Errors, face_mask: Float[Array, "b t"] | None) -> Terms:
        """The loss and its parts; the face mask weighs the video's error where there is one."""
        weight = errors.counts
        if self.mask_loss is not None and face_mask is not None:
            weight = weight * self.mask_loss.weights(face_mask)
        video, audio = weighted_mean(errors.video, weight), errors.audio.mean()
        return {"loss": video + audio, "loss_video": video, "loss_audio": audio}

    def sides(self, errors: Errors, face_mask: Float[Array, "b t"] | None) -> Terms:
        """The plain video errors on either side of the mask's threshold, where there is a mask."""
        if self.mask_loss is None or face_mask is None:
            return {}
        face = (face_mask > self.mask_loss.mask_threshold).astype(jnp.float32)
        return {
            "loss_face": weighted_mean(errors.video, face),
            "loss_background": weighted_mean(errors.video, 1 - face),
        }

    def loss(
        self,
        model: VelocityModel,
        batch: Batch,
        draws: Draw,
        grid: tuple[int, int, int],
        prepare_block: PrepareBlock | None = None,
    ) -> tuple[Float[Array, ""], Terms]:
        """Mean velocity error of video plus audio targets, float32, and its terms."""
        terms = self.terms(self.errors(model, batch, draws, grid, prepare_block), batch.face_mask)
        return terms["loss"], terms
