"""Validation while training: dubbed samples to watch, and held-out losses to compare.

What needs the text encoder and the VAE encoders is done before the transformer is loaded; the
decoders are loaded for each round and gone again. The adapters in training are used as they are.
Sampling has its own random keys, so it changes nothing in the training.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from justdubit_jax import (
    clips,
    codec,
    data,
    denoise,
    evaluate,
    lora,
    media,
    prompts,
    report,
    sample,
)
from justdubit_jax.files import replacing
from justdubit_jax.models.transformer import CrossTimestep, TransformerConfig
from justdubit_jax.settings import Settings
from justdubit_jax.weights import Checkpoint


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One prompt's job, with everything that conditions it encoded."""

    job: sample.Job
    encoded: sample.Encoded
    prompt: codec.Contexts
    negative: codec.Contexts | None


def prepare(run: Settings, checkpoint: Checkpoint) -> list[Prepared]:
    """Encode the validation's prompts, clips and images. Raises InputError on a bad one."""
    v = run.validation
    if not v.prompts or not v.interval:
        return []
    assert v.text_encoder_path is not None
    jobs = [read_job(run, checkpoint, index) for index in range(len(v.prompts))]
    guided = v.guidance_scale != 1
    wanted = [*v.prompts, v.negative_prompt] if guided else list(v.prompts)
    cache = run.output_dir / "contexts"
    contexts = prompts.encode(wanted, checkpoint, run.model_path, v.text_encoder_path, cache)
    negative = contexts[v.negative_prompt] if guided else None
    encoded = sample.encode(checkpoint, jobs)
    return [
        Prepared(job, latents, contexts[prompt], negative)
        for job, latents, prompt in zip(jobs, encoded, v.prompts, strict=True)
    ]


def read_job(run: Settings, checkpoint: Checkpoint, index: int) -> sample.Job:
    """The clip and first frame of a prompt at the validation's size and frame rate."""
    v = run.validation
    frames, sound, image = None, None, None
    count = v.frames
    if v.reference_videos:
        path = v.reference_videos[index]
        clip = clips.fit_clip(path, v.frame_rate, v.height, v.width, v.frames)
        frames, count = clip.frames, len(clip.frames)
        seconds = Fraction(count) / v.frame_rate
        sound = media.read_audio(path, codec.sample_rate(checkpoint), seconds)
    if v.images:
        image = clips.fit_image(v.images[index], v.height, v.width)
    return sample.Job(count, v.height, v.width, v.frame_rate, frames, sound, image)


class Sampler:
    """Writes OUTPUT/samples/step_000100_1.mp4 and so on; compiles once."""

    def __init__(
        self,
        run: Settings,
        checkpoint: Checkpoint,
        graphdef: Any,
        config: TransformerConfig,
        prepared: Sequence[Prepared],
        cross_timestep: CrossTimestep,
        display: report.Display,
        logs: Sequence[Any],
    ):
        v = run.validation
        self._run, self._checkpoint, self._config = run, checkpoint, config
        self._prepared, self._display, self._logs = prepared, display, logs
        self._shape = codec.audio_latent_shape(checkpoint)
        blocks = denoise.stg_blocks(v.stg_mode, v.stg_blocks if v.stg_scale else ())  # type: ignore[arg-type]
        guidance = [
            denoise.Guidance(cfg=v.guidance_scale, stg=v.stg_scale, stg_blocks=b) for b in blocks
        ]
        self._settings = denoise.Settings(
            video=guidance[0],
            audio=guidance[1],
            isolate=run.isolate,
            cross_timestep=cross_timestep,
            dtype=run.dtype,
            batched=True,
        )
        self._settings.check(config.layers)
        self._graphdef = graphdef

    def write(self, step: int, adapters: lora.Adapters, frozen: Any) -> list[Path]:
        """Sample every prompt; one that fails is reported and does not end the training."""
        v = self._run.validation
        turns = [
            (p, text, r)
            for p, text in zip(self._prepared, v.prompts, strict=True)
            for r in range(v.videos_per_prompt)
        ]
        latents, done = [], []
        with self._display.sampling(step, len(turns)) as say:
            for number, (prepared, text, repeat) in enumerate(turns, 1):
                say(number, text, f"sampling {v.steps} steps")
                try:
                    latents.append(self._sample(prepared, adapters, frozen, v.seed + repeat))
                    done.append((number, prepared.job))
                except Exception as error:
                    self._display.log(f"sample {number} of step {step} failed: {error}")
            if not done:
                return []
            say(len(turns), "", "decoding")
            try:
                decoded = sample.decode(self._checkpoint, latents)
                return [
                    self._save(step, number, job, np.concatenate(list(pieces)), sound, rate)
                    for (number, job), (pieces, sound, rate) in zip(done, decoded, strict=True)
                ]
            except Exception as error:
                self._display.log(f"samples of step {step} were not written: {error}")
                return []

    def _path(self, step: int, number: int) -> Path:
        return self._run.output_dir / "samples" / f"step_{step:06d}_{number}.mp4"

    def _sample(self, prepared: Prepared, adapters: Any, frozen: Any, seed: int) -> Any:
        contexts = (prepared.prompt, prepared.negative)
        streams = sample.conditioned(
            prepared.job, prepared.encoded, contexts, self._config, self._shape, seed
        )
        count = len(self._settings.passes)
        batched = sample.runs_batched(self._config, streams, count)
        loop = self._loop(batched)
        levels = denoise.sigmas(self._run.validation.steps)
        sampled = loop(adapters, frozen, *streams, levels)
        return sample.target_latents(prepared.job, sampled, streams, self._shape[0])

    @functools.cache  # noqa: B019 (one Sampler a run)
    def _loop(self, batched: bool) -> Any:
        return sample.sampler(self._graphdef, dataclasses.replace(self._settings, batched=batched))

    def _save(
        self, step: int, number: int, job: sample.Job, frames: Any, sound: Any, rate: int
    ) -> Path:
        """Write a sample as mp4 and contact sheet, and log it."""
        path, shown = self._path(step, number), frames
        rows = [("dubbed", frames)]
        if job.reference is not None:
            rows.insert(0, ("reference", job.reference))
            if self._run.validation.include_reference:
                shown = report.side_by_side(job.reference, frames)
        voice = sound if self._run.validation.with_sound else None
        media.write_video(path, shown, job.fps, voice, rate)
        report.contact_sheet_png(path.with_suffix(".png"), rows)
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
    """The held-out loss: logged to OUTPUT/validation.jsonl, the best checkpoint in best.json."""

    def __init__(
        self,
        run: Settings,
        graphdef: Any,
        buckets: Any,
        cross_timestep: CrossTimestep,
        logs: Sequence[Any],
    ):
        self._logs = logs
        self._loss = evaluate.FixedLoss(run, graphdef, cross_timestep)
        self._buckets, self._output = buckets, run.output_dir

    def measure(self, step: int, adapters: lora.Adapters, frozen: Any) -> dict[str, float]:
        """Measure, and append a line; a step that is already there is not measured again."""
        path = self._output / "validation.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        known = {record["step"]: record for record in map(json.loads, lines)}
        if step not in known:
            means = self._loss.mean(adapters, frozen, self._buckets)
            known[step] = {"step": step, **means}
            with replacing(path) as temporary:
                records = (json.dumps(known[s]) + "\n" for s in sorted(known))
                temporary.write_text("".join(records))
            for log in self._logs:
                log.scalars(step, {"held_out": means})
        return known[step]

    def name_best(self, record: dict[str, float], file: Path) -> None:
        """Keep the checkpoint of least loss in best.json."""
        path = self._output / "best.json"
        best = json.loads(path.read_text()) if path.exists() else None
        if best is None or record["loss"] < best["loss"]:
            with replacing(path) as temporary:
                best = {"step": record["step"], "loss": record["loss"], "file": file.name}
                temporary.write_text(json.dumps(best) + "\n")


def best_file(output: Path) -> str | None:
    """The name of the LoRA file that best.json names."""
    path = output / "best.json"
    return json.loads(path.read_text())["file"] if path.exists() else None
