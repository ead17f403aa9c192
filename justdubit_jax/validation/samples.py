"""Dubbed samples while training.

Sampling has its own random keys, so it changes nothing in the training. Every device takes a sample
at a time, and every process writes the samples of its devices.
"""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from justdubit_jax.clips.pictures import contact_sheet_png, side_by_side
from justdubit_jax.clips.write import write_video
from justdubit_jax.devices import processes, sharding
from justdubit_jax.dubbing import sample
from justdubit_jax.dubbing.job import Job, decode_samples
from justdubit_jax.latents.audio import audio_latent_shape
from justdubit_jax.lora import adapters as lora
from justdubit_jax.models.transformer_config import CrossTimestep, TransformerConfig
from justdubit_jax.runs.display import Display, Report
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.training.settings import Settings
from justdubit_jax.validation.prepare import Prepared
from justdubit_jax.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Turn:
    """One sample of a prompt; its number, from 1, is that of its file."""

    number: int
    prepared: Prepared
    seed: int


def turns(prepared: Sequence[Prepared], repeats: int, seed: int) -> list[Turn]:
    """The samples of a round: those of a prompt stand together, and differ in their seeds."""
    pairs = itertools.product(prepared, range(repeats))
    return [Turn(number, p, seed + repeat) for number, (p, repeat) in enumerate(pairs, 1)]


def in_batches(all_turns: Sequence[Turn], size: int) -> Iterator[tuple[Turn, ...]]:
    """Turns of equal shapes, `size` together where there are as many."""
    alike: dict[Any, list[Turn]] = defaultdict(list)
    for turn in all_turns:
        alike[turn.prepared.shapes].append(turn)
    for same in alike.values():
        yield from itertools.batched(same, size)


class Sampler:
    """Writes OUTPUT/samples/step_000100_1.mp4 and so on; compiles once for each shape.

    `interrupted` is asked between pieces of the work, and ends it: the sampling as soon as it is
    true on one process, the decoding on each for itself. What is not written by then is dropped.
    """

    def __init__(
        self,
        run: Settings,
        checkpoint: Checkpoint,
        graphdef: Any,
        config: TransformerConfig,
        prepared: Sequence[Prepared],
        cross_timestep: CrossTimestep,
        mesh: Mesh,
        display: Display,
        logs: Sequence[Log],
        interrupted: Callable[[], bool] = lambda: False,
    ):
        v = run.validation
        self._run, self._checkpoint, self._config, self._mesh = run, checkpoint, config, mesh
        self._turns = turns(prepared, v.videos_per_prompt, v.seed)
        self._display, self._logs, self._interrupted = display, logs, interrupted
        self._shape = audio_latent_shape(checkpoint)
        self._settings = SamplingSettings(
            *v.guidance,
            isolate=run.isolate,
            cross_timestep=cross_timestep,
            dtype=run.dtype,
            batched=v.batch_guidance is not False,
            execution=sharding.execution(mesh),
        )
        self._settings.check(config.layers)
        self._graphdef = graphdef

    def write(self, step: int, adapters: lora.Adapters, frozen: Any) -> list[Path]:
        """Sample every prompt, and return the files that this process wrote.

        A sample that fails is reported and does not end the training.
        """
        sampled: list[tuple[Turn, Any]] = []
        with self._display.sampling(step, len(self._turns)) as say:
            for batch in in_batches(self._turns, self._mesh.size):
                try:
                    latents = self._sample(batch, adapters, frozen, say)
                except Exception as error:
                    numbers = ", ".join(str(turn.number) for turn in batch)
                    self._display.log(f"sample {numbers} of step {step} failed: {error}")
                    continue
                if latents is None:
                    return []
                sampled += latents
            return self._decode(step, sampled, say)

    def _sample(
        self, batch: Sequence[Turn], adapters: Any, frozen: Any, say: Report
    ) -> list[tuple[Turn, Any]] | None:
        """The latents of this process's turns of the batch; None if interrupted."""
        steps, own = self._run.validation.steps, processes.share(self._mesh, batch)
        streams = [self._conditioned(turn) for _, turn in own]
        starts = [sample.start(pair) for pair in streams]
        spread = functools.partial(processes.spread, self._mesh)
        loop, tokens = self._loop(self._batched(streams[0])), spread(starts)
        stage = "sampling" if len(batch) == 1 else f"sampling {len(batch)} at once"
        pieces = sample.in_segments(loop, adapters, frozen, spread(streams), tokens, steps)
        for done, tokens in pieces:  # noqa: B007 (the last are used)
            say(batch[0].number, batch[0].prepared.text, stage, done, steps)
            if processes.any_process(self._interrupted()):
                return None
        rows = zip(own, streams, processes.own_rows(tokens), strict=True)
        return [
            (turn, sample.target_latents(turn.prepared.job, row, pair, self._shape[0]))
            for (place, turn), pair, row in rows
            if place < len(batch)
        ]

    def _conditioned(self, turn: Turn) -> sample.Streams:
        prepared = turn.prepared
        contexts = prepared.prompt, prepared.negative
        return sample.conditioned(
            prepared.job, prepared.encoded, contexts, self._config, self._shape, turn.seed
        )

    def _batched(self, streams: sample.Streams) -> bool:
        if self._run.validation.batch_guidance is not None:
            return self._run.validation.batch_guidance
        return sample.runs_batched(self._config, streams, len(self._settings.passes))

    @functools.cache  # noqa: B019 (one Sampler a run)
    def _loop(self, batched: bool) -> Any:
        chosen = dataclasses.replace(self._settings, batched=batched)
        return sample.sampler(self._graphdef, chosen, sharding.batch(self._mesh))

    def _decode(self, step: int, sampled: Sequence[tuple[Turn, Any]], say: Report) -> list[Path]:
        """Write the samples; after one that fails the decoders start again."""
        written, decoded = [], None
        for index, (turn, _) in enumerate(sampled):
            if self._interrupted():
                break
            say(turn.number, turn.prepared.text, "decoding")
            try:
                rest = [latents for _, latents in sampled[index:]]
                decoded = decoded or decode_samples(self._checkpoint, rest)
                pieces, sound, rate = next(decoded)
                frames = np.concatenate(list(pieces))
                job = turn.prepared.job
                written.append(self._save(step, turn.number, job, frames, sound, rate))
            except Exception as error:
                decoded = None
                self._display.log(f"sample {turn.number} of step {step} was not written: {error}")
        return written

    def has_written(self, step: int) -> bool:
        """Whether every sample of a step is there."""
        return all(self._path(step, turn.number).exists() for turn in self._turns)

    def _path(self, step: int, number: int) -> Path:
        return RunFolder(self._run.output_dir).sample(step, number)

    def _save(self, step: int, number: int, job: Job, frames: Any, sound: Any, rate: int) -> Path:
        """Write a sample as mp4 and contact sheet, and log it."""
        path, shown = self._path(step, number), frames
        rows = [("dubbed", frames)]
        if job.reference is not None:
            rows.insert(0, ("reference", job.reference))
            if self._run.validation.include_reference:
                shown = side_by_side(job.reference, frames)
        voice = sound if self._run.validation.with_sound else None
        write_video(path, shown, job.fps, voice, rate)
        contact_sheet_png(path.with_suffix(".png"), rows)
        for log in self._logs:
            log.images(step, f"sample_{number}", frames)
            log.video(step, f"sample_{number}", path)
            if voice is not None:
                log.audio(step, f"sample_{number}", voice, rate)
        self._display.log(f"wrote {path}")
        return path
