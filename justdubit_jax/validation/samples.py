"""Dubbed samples while training.

Sampling has its own random keys, so it changes nothing in the training. Every device takes a sample
at a time, and every process writes the samples of its devices.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from justdubit_jax.clips.pictures import contact_sheet_png, side_by_side
from justdubit_jax.clips.write import write_video
from justdubit_jax.dubbing.job import Job, Request, decode_samples
from justdubit_jax.dubbing.sample import Sampler
from justdubit_jax.latents.shapes import Frames, LatentPair, Sound
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.display import Display, Report
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.training.prepare import Training
from justdubit_jax.validation.prepare import Prepared
from justdubit_jax.validation.settings import Validation
from justdubit_jax.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Turn:
    """One sample of a prompt; its number, from 1, is that of its file."""

    number: int
    text: str
    request: Request


def turns(prepared: Sequence[Prepared], repeats: int) -> list[Turn]:
    """The samples of a round: those of a prompt stand together, and differ in their seeds."""
    pairs = itertools.product(prepared, range(repeats))
    return [
        Turn(number, p.text, dataclasses.replace(p.request, seed=p.request.seed + repeat))
        for number, (p, repeat) in enumerate(pairs, 1)
    ]


def in_batches(all_turns: Sequence[Turn], size: int) -> Iterator[tuple[Turn, ...]]:
    """Turns of equal shapes, `size` together where there are as many."""
    alike: dict[Any, list[Turn]] = defaultdict(list)
    for turn in all_turns:
        alike[turn.request.shapes].append(turn)
    for same in alike.values():
        yield from itertools.batched(same, size)


class SampleWriter:
    """Writes OUTPUT/samples/step_000100_1.mp4 and so on.

    `interrupted` is asked between pieces of the work, and ends it: the sampling as soon as it is
    true on one process, the decoding on each for itself. What is not written by then is dropped.
    """

    def __init__(
        self,
        training: Training,
        validation: Validation,
        checkpoint: Checkpoint,
        prepared: Sequence[Prepared],
        display: Display,
        logs: Sequence[Log],
        interrupted: Callable[[], bool] = lambda: False,
    ):
        v, objective = validation, training.objective
        self._validation = validation
        self._run, self._checkpoint, self._together = training.run, checkpoint, training.mesh.size
        self._turns = turns(prepared, v.videos_per_prompt)
        self._display, self._logs, self._interrupted = display, logs, interrupted
        settings = SamplingSettings(
            *v.guidance,
            isolate=objective.isolate,
            cross_timestep=objective.cross_timestep,
            dtype=objective.dtype,
        )
        self._sampler = Sampler(
            training.graphdef,
            training.config,
            training.layout,
            training.mesh,
            settings,
            v.steps,
            v.batch_guidance,
        )

    def write(self, step: int, weights: lora.Weights) -> list[Path]:
        """Sample every prompt, and return the files that this process wrote.

        A sample that fails is reported and does not end the training.
        """
        sampled: list[tuple[Turn, LatentPair]] = []
        with self._display.sampling(step, len(self._turns)) as say:
            for batch in in_batches(self._turns, self._together):
                try:
                    latents = self.sample(batch, weights, say)
                except Exception as error:
                    numbers = ", ".join(str(turn.number) for turn in batch)
                    self._display.log(f"sample {numbers} of step {step} failed: {error}")
                    continue
                if latents is None:
                    return []
                sampled += latents
            return self._decode(step, sampled, say)

    def sample(
        self, batch: Sequence[Turn], weights: lora.Weights, say: Report
    ) -> list[tuple[Turn, LatentPair]] | None:
        """The latents of this process's turns of the batch; None if interrupted."""
        stage = "sampling" if len(batch) == 1 else f"sampling {len(batch)} at once"
        first, steps = batch[0], self._validation.steps
        requests = [turn.request for turn in batch]

        def show(done: int) -> None:
            say(first.number, first.text, stage, done, steps)

        found = self._sampler.sample(weights, requests, show, self._interrupted)
        return None if found is None else [(batch[index], latents) for index, latents in found]

    def _decode(
        self, step: int, sampled: Sequence[tuple[Turn, LatentPair]], say: Report
    ) -> list[Path]:
        """Write the samples; after one that fails the decoders start again."""
        written, decoded = [], None
        for index, (turn, _) in enumerate(sampled):
            if self._interrupted():
                break
            say(turn.number, turn.text, "decoding")
            try:
                rest = [latents for _, latents in sampled[index:]]
                decoded = decoded or decode_samples(self._checkpoint, rest)
                pieces, sound, rate = next(decoded)
                frames = np.concatenate(list(pieces))
                job = turn.request.job
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

    def _save(
        self, step: int, number: int, job: Job, frames: Frames, sound: Sound, rate: int
    ) -> Path:
        """Write a sample as mp4 and contact sheet, and log it."""
        path, shown = self._path(step, number), frames
        rows = [("dubbed", frames)]
        if job.reference is not None:
            rows.insert(0, ("reference", job.reference))
            if self._validation.include_reference:
                shown = side_by_side(job.reference, frames)
        voice = sound if self._validation.with_sound else None
        write_video(path, shown, job.fps, voice, rate)
        contact_sheet_png(path.with_suffix(".png"), rows)
        for log in self._logs:
            log.images(step, f"sample_{number}", frames)
            log.video(step, f"sample_{number}", path)
            if voice is not None:
                log.audio(step, f"sample_{number}", voice, rate)
        self._display.log(f"wrote {path}")
        return path
