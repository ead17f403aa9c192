"""The loss as a number that can be compared: fixed samples, fixed sigmas, fixed noise."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from justdubit_jax.data.batch import Batch, SampleShape
from justdubit_jax.data.samples import SampleFiles, ShapeGroup, read_sample
from justdubit_jax.devices import processes, sharding
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.tokens import Layout
from justdubit_jax.training.objective import Draw, Errors, Objective, Terms
from justdubit_jax.training.step import Grid

SIGMAS = (0.2, 0.4, 0.6, 0.8, 1.0)


class FixedLoss:
    """Mean loss terms over samples at SIGMAS, without gradients; compiles once a shape.

    Besides the training's loss_video and loss_audio and their sum, loss_face and loss_background
    are the plain video errors on either side of the mask's threshold. The noise of a sample
    depends on its name alone, and the first frame is never given, so the same weights give the
    same numbers on every run, up to rounding also on another number of devices. Each device takes
    a sample at a time.
    """

    def __init__(self, objective: Objective, graphdef: nnx.GraphDef, layout: Layout, mesh: Mesh):
        self._layout, self._mesh = layout, mesh
        self._objective = objective = dataclasses.replace(
            objective,
            first_frame_p=0.0,
            execution=sharding.execution(mesh, attend=objective.execution.attend),
        )

        def of_sample(errors: Errors, face_mask: Array | None) -> Terms:
            one, mask = jax.tree.map(lambda x: x[None], (errors, face_mask))
            return objective.terms(one, mask) | objective.sides(one, mask)

        # Whole on every device, since each process reads them all.
        @jax.jit(static_argnames="grid", out_shardings=sharding.replicated(mesh))
        def terms(
            weights: lora.Weights, batch: Batch, draws: Draw, sigma: Array, grid: Grid
        ) -> dict[str, Array]:
            model = lora.merge(graphdef, *weights)
            draws = draws._replace(sigma=jnp.full_like(draws.sigma, sigma))
            errors = objective.errors(model, batch, draws, grid)
            return jax.vmap(of_sample)(errors, batch.face_mask)

        self._terms = terms

    def lower(self, weights: lora.Weights, shape: SampleShape) -> jax.stages.Lowered:
        """The program for a sample a device, ready to compile; `weights` may be shapes."""
        place = sharding.batch(self._mesh)
        batch = shape.batch(self._mesh.size)
        draws = jax.eval_shape(
            lambda key, batch: self._objective.draw(key, batch, shape.grid[0]),
            jax.eval_shape(lambda: jax.random.key(0)),
            batch,
        )
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (batch, draws)
        )
        sigma: Any = jax.ShapeDtypeStruct((), jnp.float32)
        return self._terms.lower(weights, *placed, sigma, shape.grid)

    def mean(self, weights: lora.Weights, groups: Iterable[ShapeGroup]) -> dict[str, float]:
        """The terms, averaged over all samples of the groups and all SIGMAS."""
        found = []
        for group in groups:
            grid = group.shape.grid
            for some in itertools.batched(group.samples, self._mesh.size):
                own = [self._draw(files, grid[0]) for _, files in processes.share(self._mesh, some)]
                batch, draws = processes.spread(self._mesh, own)
                for sigma in np.array(SIGMAS, np.float32):
                    terms = self._terms(weights, batch, draws, sigma, grid)
                    found.append({k: np.asarray(x)[: len(some)] for k, x in terms.items()})
        return jax.tree.map(lambda *x: float(np.mean(np.concatenate(x))), *found)

    def _draw(self, files: SampleFiles, frames: int) -> tuple[Batch, Draw]:
        """A sample as a batch of one, and its noise."""
        batch = Batch(
            *jax.tree.map(lambda x: jnp.asarray(x)[None], read_sample(files, self._layout))
        )
        key = jax.random.key(zlib.crc32(files.name.encode()))
        return batch, self._objective.draw(key, batch, frames)
