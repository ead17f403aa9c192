"""One dubbed clip: reference and first frame in, picture and sound out.

Shared by the dub command and by validation in training. Models are loaded for their turn only: the
encoders before the transformer samples, the decoders after it, so none stands beside another.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from justdubit_jax.devices import processes
from justdubit_jax.dubbing.job import Encoded, Job
from justdubit_jax.latents.shapes import Contexts, Latents
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models import tokens
from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.sampling.loop import Conditioned, Tokens, denoise
from justdubit_jax.sampling.schedule import sigmas

Streams = tuple[Conditioned, Conditioned]  # of video, of audio

_SEGMENT = 5  # steps of one call at most: seconds, so that a person sees it move


def conditioned(
    job: Job,
    encoded: Encoded,
    contexts: tuple[Contexts, Contexts | None],
    config: TransformerConfig,
    audio_shape: tuple[int, int],
    seed: int,
) -> Streams:
    """Noise of that seed, reference tokens, positions and text of both modalities, batch 1.

    `contexts` are those of the prompt and of the negative prompt; `audio_shape` the (channels,
    bins) of an audio latent. The sound is as long as the reference's, else as the picture.
    """
    video_key, audio_key = jax.random.split(jax.random.key(seed))
    grids = [job.grid, job.grid] if encoded.reference is not None else [job.grid]
    seconds = float(job.frames / job.fps)
    length = tokens.audio_latent_frames(seconds)
    lengths = [length]
    if encoded.sound is not None:
        lengths = [encoded.sound.shape[1]] * 2
    positions = [tokens.video_positions(grid, float(job.fps)) for grid in grids]
    times = [tokens.audio_positions(n) for n in lengths]

    def stream(key, count, channels, reference, places, which, given=None) -> Conditioned:
        prompt, negative = contexts
        return Conditioned(
            noise=jax.random.normal(key, (1, count, channels)),
            reference=jnp.zeros((1, 0, channels)) if reference is None else jnp.asarray(reference),
            positions=jnp.asarray(np.concatenate(places, 1))[None],
            context=jnp.asarray(prompt[which])[None],
            negative=None if negative is None else jnp.asarray(negative[which])[None],
            given=None if given is None else jnp.asarray(given),
        )

    def of_video(latents: Latents | None) -> Any:
        return None if latents is None else tokens.video_tokens(latents[None])

    channels, bins = audio_shape
    sound = None if encoded.sound is None else tokens.audio_tokens(encoded.sound[None])
    count = int(np.prod(job.grid))
    return (
        stream(
            video_key,
            count,
            config.video.in_channels,
            of_video(encoded.reference),
            positions,
            0,
            of_video(encoded.image),
        ),
        stream(audio_key, lengths[-1], channels * bins, sound, times, 1),
    )


def start(streams: Streams) -> Tokens:
    """The tokens of both modalities at sigma 1."""
    video, audio = streams
    return video.start(), audio.start()


def sampler(graphdef: Any, settings: SamplingSettings, place: Any = None) -> Any:
    """The compiled loop: (adapters, frozen, streams, tokens, levels) -> tokens.

    `place` is the sharding of the tokens of both modalities, None what follows from the arguments.
    """

    @functools.partial(jax.jit, out_shardings=place)
    def run(adapters: Any, frozen: Any, streams: Any, sampled: Any, levels: Any) -> Tokens:
        video, audio = streams
        model = lora.merge(graphdef, adapters, frozen)
        return denoise(model, video, audio, levels, settings, sampled)

    return run


def in_segments(
    loop: Any, adapters: Any, frozen: Any, streams: Any, sampled: Tokens, steps: int
) -> Iterator[tuple[int, Tokens]]:
    """Sample by calls of a few steps: yields (steps done, tokens), first those of none done.

    The calls are of equal length, so one program serves them all. Between them the host can show
    what is done, or stop.
    """
    levels = sigmas(steps)
    size = max(n for n in range(1, _SEGMENT + 1) if steps % n == 0)
    for done in range(0, steps, size):
        yield done, sampled
        part = levels[done : done + size + 1]
        sampled = jax.block_until_ready(loop(adapters, frozen, streams, sampled, part))
    yield steps, sampled


def target_latents(
    job: Job, sampled: Sequence[Any], streams: Streams, channels: int
) -> tuple[Latents, Latents]:
    """The target part of sampled tokens as latents [c, f, y, x] and [c, t, m]."""
    video, audio = (
        np.array(x[:, stream.reference.shape[1] :])
        for x, stream in zip(sampled, streams, strict=True)
    )
    picture: Any = tokens.video_latents(video, job.grid)
    return picture[0], np.asarray(tokens.audio_latents(audio, channels)[0])


def runs_batched(config: TransformerConfig, streams: Streams, passes: int) -> bool:
    """Whether the passes of a step fit beside one another into the free memory of each device.

    All processes ask together and get the same answer, since they run the same program. A pass
    holds about two dozen copies of its hidden tokens at once (queries, keys, values, the
    feed-forward's four-fold middle, float32 norms). Where the device does not tell: yes.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    free = stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)
    counts = [s.noise.shape[1] + s.reference.shape[1] for s in streams]
    width = counts[0] * config.video.dim + counts[1] * config.audio.dim
    return not processes.any_process(passes * 24 * 2 * width >= free)
