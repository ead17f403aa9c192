"""The loss as a number that can be compared: fixed samples, fixed sigmas, fixed noise."""

import itertools
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from justdubit_jax.data.batch import Batch
from justdubit_jax.data.samples import Bucket, Sample, read_sample
from justdubit_jax.devices import processes, sharding
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.transformer_config import CrossTimestep
from justdubit_jax.training import objective
from justdubit_jax.training.settings import Settings

SIGMAS = (0.2, 0.4, 0.6, 0.8, 1.0)


class FixedLoss:
    """Mean loss terms over samples at SIGMAS, without gradients; compiles once a bucket.

    Besides the training's loss_video and loss_audio and their sum, loss_face and loss_background
    are the plain video errors on either side of the mask's threshold. The noise of a sample
    depends on its name alone, and the first frame is never given, so the same weights give the
    same numbers on every run, up to rounding also on another number of devices. Each device takes
    a sample at a time.
    """

    def __init__(self, run: Settings, graphdef: Any, cross_timestep: CrossTimestep, mesh: Mesh):
        self._run, self._mesh = run, mesh
        mean = jax.vmap(lambda x, weight: objective.weighted_mean(x[None], weight[None]))

        # Whole on every device, since each process reads them all.
        @jax.jit(static_argnames="grid", out_shardings=sharding.replicated(mesh))
        def terms(adapters: Any, frozen: Any, batch: Any, draws: Any, sigma: Any, grid: Any) -> Any:
            error = objective.errors(
                lora.merge(graphdef, adapters, frozen),
                batch,
                draws._replace(sigma=jnp.full_like(draws.sigma, sigma)),
                grid=grid,
                isolate=run.isolate,
                dtype=run.dtype,
                cross_timestep=cross_timestep,
                execution=sharding.execution(mesh),
            )
            weight, parts = error.counts, {}
            if run.mask_loss is not None and batch.face_mask is not None:
                weight = run.mask_loss.weights(batch.face_mask)
                face = (batch.face_mask > run.mask_loss.mask_threshold).astype(jnp.float32)
                parts["loss_face"] = mean(error.video, face)
                parts["loss_background"] = mean(error.video, 1 - face)
            video, audio = mean(error.video, weight), error.audio.mean((1, 2))
            return {"loss": video + audio, "loss_video": video, "loss_audio": audio} | parts

        self._terms = terms

    def mean(
        self, adapters: lora.Adapters, frozen: Any, buckets: Iterable[Bucket]
    ) -> dict[str, float]:
        """The terms, averaged over all samples of the buckets and all SIGMAS."""
        found = []
        for bucket in buckets:
            for group in itertools.batched(bucket.samples, self._mesh.size):
                own = [self._draw(s, bucket.grid[0]) for _, s in processes.share(self._mesh, group)]
                batch, draws = processes.spread(self._mesh, own)
                for sigma in np.array(SIGMAS, np.float32):
                    terms = self._terms(adapters, frozen, batch, draws, sigma, bucket.grid)
                    found.append({k: np.asarray(x)[: len(group)] for k, x in terms.items()})
        return jax.tree.map(lambda *x: float(np.mean(np.concatenate(x))), *found)

    def _draw(self, sample: Sample, frames: int) -> tuple[Batch, objective.Draw]:
        """A sample as a batch of one, and its noise."""
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], read_sample(sample))
        key = jax.random.key(zlib.crc32(sample.name.encode()))
        return batch, objective.draw(key, batch, self._run.sampling, 0.0, frames)
