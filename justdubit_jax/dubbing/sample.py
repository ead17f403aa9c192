"""Dubbed clips as latents: what conditions a sample, and the loop that makes it.

The dub command makes one at a time; validation makes as many together as there are devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from justdubit_jax.devices import processes, sharding
from justdubit_jax.dubbing.job import Job, Request
from justdubit_jax.latents.shapes import LatentPair, Latents
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models import tokens
from justdubit_jax.models.tokens import Layout
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.sampling.loop import Conditioned, TokenPair, denoise
from justdubit_jax.sampling.schedule import sigmas

Conditions = tuple[Conditioned, Conditioned]  # of video, of audio
Loop = Callable[[lora.Weights, Conditions, TokenPair, np.ndarray], TokenPair]

_STEPS_A_CALL = 5  # at most: seconds, so that a person sees it move


class Sampler:
    """Samples with one transformer, a request a device at a time; compiles once for each shape.

    `batched` runs the passes of a step side by side (True), one after the other (False), or as the
    free memory allows (None).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: TransformerConfig,
        layout: Layout,
        mesh: Mesh,
        settings: SamplingSettings,
        steps: int,
        batched: bool | None = None,
    ):
        settings.check(config.layers)
        execution = sharding.execution(mesh)
        self._settings = dataclasses.replace(settings, execution=execution)
        self._graphdef, self._config, self._layout = graphdef, config, layout
        self._mesh, self._steps, self._batched = mesh, steps, batched

    def sample(
        self,
        weights: lora.Weights,
        requests: Sequence[Request],
        show: Callable[[int], None] = lambda done: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[tuple[int, LatentPair]] | None:
        """Number and latents of those requests that this process's devices take.

        There are at most as many as devices, and of one shape (`Request.shapes`). `show` is told
        how many steps are done, from 0 on. As soon as `stopped` is true on one process the sampling
        ends on all, with None.
        """
        own = processes.share(self._mesh, requests)
        conditions = [self.conditions(request) for _, request in own]
        spread = functools.partial(processes.spread, self._mesh)
        everything = spread(conditions)
        sampled = spread([(video.start(), audio.start()) for video, audio in conditions])
        loop, levels = self._loop(self._runs_batched(conditions[0])), sigmas(self._steps)
        size = max(n for n in range(1, _STEPS_A_CALL + 1) if self._steps % n == 0)
        for done in range(0, self._steps + 1, size):
            show(done)
            if processes.any_process(stopped()):
                return None
            if done < self._steps:
                part = levels[done : done + size + 1]
                sampled = jax.block_until_ready(loop(weights, everything, sampled, part))
        rows = zip(own, conditions, processes.own_rows(sampled), strict=True)
        return [
            (number, target_latents(request.job, row, pair, self._layout))
            for (number, request), pair, row in rows
            if number < len(requests)  # the other devices repeat the last
        ]

    def conditions(self, request: Request) -> Conditions:
        """Noise, reference tokens, positions and text of both modalities, batch 1."""
        return conditioned(request, self._config, self._layout)

    @functools.cache  # noqa: B019 (one Sampler a run)
    def _loop(self, batched: bool) -> Loop:
        settings = dataclasses.replace(self._settings, batched=batched)
        return compiled_loop(self._graphdef, settings, self._mesh)

    def _runs_batched(self, conditions: Conditions) -> bool:
        if self._batched is not None:
            return self._batched
        return fits_batched(self._config, conditions, len(self._settings.passes))


def conditioned(request: Request, config: TransformerConfig, layout: Layout) -> Conditions:
    """What conditions a sample, batch 1; the sound is as long as the reference's, else as the
    picture."""
    job, encoded = request.job, request.encoded
    video_key, audio_key = jax.random.split(jax.random.key(request.seed))
    grid = layout.grid(job.frames, job.height, job.width)
    grids = [grid, grid] if encoded.reference is not None else [grid]
    lengths = [layout.audio_latent_frames(float(job.frames / job.fps))]
    if encoded.sound is not None:
        lengths = [encoded.sound.shape[1]] * 2
    sound = None if encoded.sound is None else tokens.audio_tokens(encoded.sound[None])
    video_noise = jax.random.normal(video_key, (1, math.prod(grid), config.video.in_channels))
    audio_noise = jax.random.normal(audio_key, (1, lengths[-1], config.audio.in_channels))
    video_positions = [layout.video_positions(grid, float(job.fps)) for grid in grids]
    audio_positions = [layout.audio_positions(length) for length in lengths]
    video = _stream(request, 0, video_noise, _video_tokens(encoded.reference), video_positions)
    first = _video_tokens(encoded.image)
    return (
        video._replace(first_frame=None if first is None else jnp.asarray(first)),
        _stream(request, 1, audio_noise, sound, audio_positions),
    )


def _video_tokens(latents: Latents | None) -> Any:
    return None if latents is None else tokens.video_tokens(latents[None])


def _stream(
    request: Request, which: int, noise: Array, reference: Any, positions: Sequence[np.ndarray]
) -> Conditioned:
    """One modality: 0 is video, 1 audio."""
    empty = jnp.zeros((1, 0, noise.shape[-1]))
    negative = None if request.negative is None else jnp.asarray(request.negative[which])[None]
    return Conditioned(
        noise=noise,
        reference=empty if reference is None else jnp.asarray(reference),
        positions=jnp.asarray(np.concatenate(positions, 1))[None],
        context=jnp.asarray(request.prompt[which])[None],
        negative=negative,
    )


def compiled_loop(graphdef: nnx.GraphDef, settings: SamplingSettings, mesh: Mesh) -> Loop:
    """The jitted loop over a part of the levels, from tokens to tokens."""

    @functools.partial(jax.jit, out_shardings=sharding.batch(mesh))
    def run(
        weights: lora.Weights, conditions: Conditions, sampled: TokenPair, levels: Array
    ) -> TokenPair:
        model = lora.merge(graphdef, *weights)
        return denoise(model, *conditions, levels, settings, sampled)

    return run


def target_latents(
    job: Job, sampled: Sequence[np.ndarray], conditions: Conditions, layout: Layout
) -> LatentPair:
    """The target part of sampled tokens, of video and audio, as latents [c, f, y, x], [c, t, m]."""
    video, audio = (
        np.array(x[:, stream.reference.shape[1] :])
        for x, stream in zip(sampled, conditions, strict=True)
    )
    grid = layout.grid(job.frames, job.height, job.width)
    picture: Any = tokens.video_latents(video, grid)
    return picture[0], np.asarray(tokens.audio_latents(audio, layout.audio_channels)[0])


def fits_batched(config: TransformerConfig, conditions: Conditions, passes: int) -> bool:
    """Whether the passes of a step fit beside one another into the free memory of each device.

    All processes ask together and get the same answer, since they run the same program. A pass
    holds about two dozen copies of its hidden tokens at once (queries, keys, values, the
    feed-forward's four-fold middle, float32 norms). Where the device does not tell: yes.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    free = stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)
    counts = [s.noise.shape[1] + s.reference.shape[1] for s in conditions]
    width = counts[0] * config.video.dim + counts[1] * config.audio.dim
    return not processes.any_process(passes * 24 * 2 * width >= free)
