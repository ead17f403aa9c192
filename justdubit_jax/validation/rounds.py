"""Validation while training: dubbed samples to watch, and held-out losses to compare.

What needs the text encoder and the VAE encoders is done before the transformer is loaded; the
decoders are loaded for each round and gone again. The adapters in training are used as they are.
Sampling has its own random keys, so it changes nothing in the training. Every device takes a sample
at a time, and every process writes the samples of its devices.
"""

import dataclasses
import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from justdubit_jax.clips import fit as clips
from justdubit_jax.clips import read as media
from justdubit_jax.clips.pictures import contact_sheet_png, side_by_side
from justdubit_jax.clips.write import write_video
from justdubit_jax.data import samples as data
from justdubit_jax.devices import processes, sharding
from justdubit_jax.dubbing import sample
from justdubit_jax.dubbing.job import Encoded, Job, decode_samples, encode_jobs
from justdubit_jax.files import replacing
from justdubit_jax.latents import text_cache as prompts
from justdubit_jax.latents.audio import audio_latent_shape, sample_rate
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.models.transformer_config import CrossTimestep, TransformerConfig
from justdubit_jax.runs import display as report
from justdubit_jax.runs.metrics import Metrics
from justdubit_jax.runs.output import is_due, read_best
from justdubit_jax.sampling.guidance import SamplingSettings
from justdubit_jax.training.prepare import Training
from justdubit_jax.training.settings import Settings
from justdubit_jax.validation import fixed_loss as evaluate
from justdubit_jax.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One prompt's job, with everything that conditions it encoded."""

    job: Job
    encoded: Encoded
    text: str
    prompt: Contexts
    negative: Contexts | None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What samples have in common that can stand in one batch."""
        parts = self.encoded.reference, self.encoded.sound, self.encoded.image
        return self.job.grid, *(None if x is None else x.shape for x in parts)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One sample of a prompt; its number, from 1, is that of its file."""

    number: int
    prepared: Prepared
    seed: int


def prepare(run: Settings, checkpoint: Checkpoint) -> list[Prepared]:
    """Encode the validation's prompts, clips and images. Raises InputError on a bad one."""
    v = run.validation
    if not v.prompts or not v.interval:
        return []
    assert v.text_encoder_path is not None
    jobs = [read_job(run, checkpoint, index) for index in range(len(v.prompts))]
    guided = any(guidance.cfg != 1 for guidance in v.guidance)
    wanted = [*v.prompts, v.negative_prompt] if guided else list(v.prompts)
    cache = run.output_dir / "contexts"
    contexts = prompts.cached_contexts(
        wanted, checkpoint, run.model_path, v.text_encoder_path, cache
    )
    negative = contexts[v.negative_prompt] if guided else None
    encoded = encode_jobs(checkpoint, jobs)
    return [
        Prepared(job, latents, prompt, contexts[prompt], negative)
        for job, latents, prompt in zip(jobs, encoded, v.prompts, strict=True)
    ]


def read_job(run: Settings, checkpoint: Checkpoint, index: int) -> Job:
    """The clip and first frame of a prompt at the validation's size and frame rate."""
    v = run.validation
    frames, sound, image = None, None, None
    count = v.frames
    if v.reference_videos:
        path = v.reference_videos[index]
        clip = clips.fit_clip(path, v.frame_rate, v.height, v.width, v.frames)
        frames, count = clip.frames, len(clip.frames)
        seconds = Fraction(count) / v.frame_rate
        sound = media.read_audio(path, sample_rate(checkpoint), seconds)
    if v.images:
        image = clips.fit_image(v.images[index], v.height, v.width)
    return Job(count, v.height, v.width, v.frame_rate, frames, sound, image)


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
        display: report.Display,
        logs: Sequence[Any],
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
        self, batch: Sequence[Turn], adapters: Any, frozen: Any, say: report.Report
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

    def _decode(
        self, step: int, sampled: Sequence[tuple[Turn, Any]], say: report.Report
    ) -> list[Path]:
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
        return self._run.output_dir / "samples" / f"step_{step:06d}_{number}.mp4"

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


def split_holdout(
    samples: Sequence[data.Sample], count: int, seed: int
) -> tuple[list[data.Sample], list[data.Sample]]:
    """(for training, held out): the same samples for the same seed and data set."""
    order = np.random.default_rng(seed).permutation(len(samples))
    held = set(order[:count].tolist())
    chosen = [s for i, s in enumerate(samples) if i in held]
    return [s for i, s in enumerate(samples) if i not in held], chosen


class Holdout:
    """The held-out loss: logged to OUTPUT/validation.jsonl, the best checkpoint in best.json.

    What the files say of steps beyond `first_step`, from which a run continues, is dropped. The
    first process writes them.
    """

    def __init__(
        self,
        run: Settings,
        graphdef: Any,
        buckets: Any,
        cross_timestep: CrossTimestep,
        mesh: Mesh,
        first_step: int,
        logs: Sequence[Any],
    ):
        self._logs, self._buckets, self._output = logs, buckets, run.output_dir
        self._loss = evaluate.FixedLoss(run, graphdef, cross_timestep, mesh)
        self._writes = jax.process_index() == 0
        path = self._output / "validation.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [r for r in map(json.loads, lines) if r["step"] <= first_step]
        # Read once: the processes must agree on what is left to measure.
        self._known: dict[int, dict[str, float]] = {r["step"]: r for r in records}
        best = read_best(self._output)
        if self._writes and best is not None and best["step"] > first_step:
            (self._output / "best.json").unlink()

    def measure(self, step: int, adapters: lora.Adapters, frozen: Any) -> dict[str, float]:
        """Measure, and append a line; a step that is already there is not measured again."""
        if step not in self._known:
            means = self._loss.mean(adapters, frozen, self._buckets)
            self._known[step] = {"step": step, **means}
            if self._writes:
                with replacing(self._output / "validation.jsonl") as temporary:
                    records = (json.dumps(self._known[s]) + "\n" for s in sorted(self._known))
                    temporary.write_text("".join(records))
            for log in self._logs:
                log.scalars(step, {"held_out": means})
        return self._known[step]

    def name_best(self, record: dict[str, float], file: Path) -> None:
        """Keep the checkpoint of least loss in best.json."""
        best = read_best(self._output)
        if self._writes and (best is None or record["loss"] < best["loss"]):
            with replacing(self._output / "best.json") as temporary:
                best = {"step": record["step"], "loss": record["loss"], "file": file.name}
                temporary.write_text(json.dumps(best) + "\n")


class Rounds:
    """What is looked at while training: samples, held-out loss, which checkpoint is the best.

    All of it draws from keys of its own and changes nothing in the training.
    """

    def __init__(
        self,
        training: Training,
        checkpoint: Checkpoint,
        prepared: Sequence[Prepared],
        held_out: Sequence[data.Sample],
        first_step: int,
        display: report.Display,
        metrics: Metrics,
        logs: Sequence[Any],
    ):
        self.interrupted: Callable[[], bool] = lambda: False
        self._run, self._first_step = training.run, first_step
        self._display, self._metrics = display, metrics
        graphdef, rule, mesh = training.graphdef, training.cross_timestep, training.mesh
        self._sampler = self._holdout = None
        if prepared:
            self._sampler = Sampler(
                training.run,
                checkpoint,
                graphdef,
                training.model.config,
                prepared,
                rule,
                mesh,
                display,
                logs,
                interrupted=lambda: self.interrupted(),
            )
        if held_out:
            buckets = data.make_buckets(held_out)
            self._holdout = Holdout(training.run, graphdef, buckets, rule, mesh, first_step, logs)

    def catch_up(self, adapters: lora.Adapters, frozen: Any) -> None:
        """Before the first step: the baseline, or what the run was killed in."""
        v, step = self._run.validation, self._first_step
        if step == 0:
            if v.interval and not v.skip_initial:
                self.look(0, adapters, frozen)
            return
        self._rank(step, adapters, frozen)
        if is_due(step, v.interval) and self._sampler and not self._sampler.has_written(step):
            self.look(step, adapters, frozen)

    def after(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        """After a step, and its checkpoint if there is one."""
        run = self._run
        if step == run.steps or is_due(step, run.checkpoint_interval):
            self._rank(step, adapters, frozen)
        if is_due(step, run.validation.interval):
            self.look(step, adapters, frozen)

    def look(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        """Samples and held-out loss."""
        with self._metrics.pause():
            if self._sampler:
                self._sampler.write(step, adapters, frozen)
                self._metrics.curve()
            if self._holdout:
                loss = self._holdout.measure(step, adapters, frozen)["loss"]
                self._display.log(f"step {step}/{self._run.steps}  held-out loss {loss:.4f}")

    def _rank(self, step: int, adapters: lora.Adapters, frozen: Any) -> None:
        if self._run.keep_best and self._holdout:
            with self._metrics.pause():
                record = self._holdout.measure(step, adapters, frozen)
                self._holdout.name_best(record, lora_files.export_path(self._run.output_dir, step))
