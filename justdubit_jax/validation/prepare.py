"""What conditions the validation's samples, encoded before the transformer is loaded."""

import dataclasses
from fractions import Fraction
from typing import Any

from justdubit_jax.clips.fit import fit_clip, fit_image
from justdubit_jax.clips.read import read_audio
from justdubit_jax.dubbing.job import Encoded, Job, encode_jobs
from justdubit_jax.latents.audio import sample_rate
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.latents.text_cache import cached_contexts
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training.settings import Settings
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


def prepare_validation(run: Settings, checkpoint: Checkpoint) -> list[Prepared]:
    """Encode the validation's prompts, clips and images. Raises InputError on a bad one."""
    v = run.validation
    if not v.prompts or not v.interval:
        return []
    assert v.text_encoder_path is not None
    jobs = [read_job(run, checkpoint, index) for index in range(len(v.prompts))]
    guided = any(guidance.cfg != 1 for guidance in v.guidance)
    wanted = [*v.prompts, v.negative_prompt] if guided else list(v.prompts)
    cache = RunFolder(run.output_dir).contexts
    contexts = cached_contexts(wanted, checkpoint, run.model_path, v.text_encoder_path, cache)
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
        clip = fit_clip(path, v.frame_rate, v.height, v.width, v.frames)
        frames, count = clip.frames, len(clip.frames)
        seconds = Fraction(count) / v.frame_rate
        sound = read_audio(path, sample_rate(checkpoint), seconds)
    if v.images:
        image = fit_image(v.images[index], v.height, v.width)
    return Job(count, v.height, v.width, v.frame_rate, frames, sound, image)
