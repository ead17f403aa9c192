"""The loss as a number that can be compared: fixed samples, fixed sigmas, fixed noise."""

import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from justdubit_jax import data, lora, objective
from justdubit_jax.data import Bucket
from justdubit_jax.models.transformer import CrossTimestep
from justdubit_jax.settings import Settings

SIGMAS = (0.2, 0.4, 0.6, 0.8, 1.0)


class FixedLoss:
    """Mean loss terms over samples at SIGMAS, without gradients; compiles once a bucket.

    Besides the training's loss_video and loss_audio and their sum, loss_face and loss_background
    are the plain video errors on either side of the mask's threshold. The noise of a sample
    depends on its name alone, and the first frame is never given, so the same weights give the
    same numbers on every run.
    """

    def __init__(self, run: Settings, graphdef: Any, cross_timestep: CrossTimestep):
        self._run = run

        @jax.jit(static_argnames="grid")
        def terms(adapters: Any, frozen: Any, batch: Any, draws: Any, grid: Any) -> Any:
            error = objective.errors(
                lora.merge(graphdef, adapters, frozen),
                batch,
                draws,
                grid=grid,
                isolate=run.isolate,
                dtype=run.dtype,
                cross_timestep=cross_timestep,
            )
            weight, parts = error.counts, {}
            if run.mask_loss is not None and batch.face_mask is not None:
                weight = run.mask_loss.weights(batch.face_mask)
                face = (batch.face_mask > run.mask_loss.mask_threshold).astype(jnp.float32)
                parts["loss_face"] = objective.weighted_mean(error.video, face)
                parts["loss_background"] = objective.weighted_mean(error.video, 1 - face)
            video, audio = objective.weighted_mean(error.video, weight), error.audio.mean()
            return {"loss": video + audio, "loss_video": video, "loss_audio": audio} | parts

        self._terms = terms

    def mean(
        self, adapters: lora.Adapters, frozen: Any, buckets: Iterable[Bucket]
    ) -> dict[str, float]:
        """The terms, averaged over all samples of the buckets and all SIGMAS."""
        found = []
        for bucket in buckets:
            for sample in bucket.samples:
                batch = jax.tree.map(lambda x: jnp.asarray(x)[None], data.read_sample(sample))
                key = jax.random.key(zlib.crc32(sample.name.encode()))
                draws = objective.draw(key, batch, self._run.sampling, 0.0, bucket.grid[0])
                for sigma in SIGMAS:
                    fixed = draws._replace(sigma=jnp.full((1,), sigma))
                    found.append(self._terms(adapters, frozen, batch, fixed, bucket.grid))
        return jax.tree.map(lambda *x: float(np.mean(x)), *found)
