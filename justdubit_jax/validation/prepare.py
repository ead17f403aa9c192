"""What conditions the validation's samples, encoded before the transformer is loaded."""

import dataclasses

from justdubit_jax.dubbing.job import Job, Request, clip_job, encode_jobs, plain_job
from justdubit_jax.latents.text_cache import cached_contexts
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training.settings import Settings
from justdubit_jax.validation.settings import Validation
from justdubit_jax.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prompt, and what is sampled for it."""

    text: str
    request: Request


def prepare_validation(run: Settings, v: Validation, checkpoint: Checkpoint) -> list[Prepared]:
    """Encode the validation's prompts, clips and images. Raises InputError on a bad one."""
    if not v.prompts or not v.interval:
        return []
    assert v.text_encoder_path is not None
    jobs = [_job(v, checkpoint, index) for index in range(len(v.prompts))]
    guided = any(guidance.cfg != 1 for guidance in v.guidance)
    wanted = [*v.prompts, v.negative_prompt] if guided else list(v.prompts)
    cache = RunFolder(run.output_dir).contexts
    contexts = cached_contexts(wanted, checkpoint, run.model_path, v.text_encoder_path, cache)
    negative = contexts[v.negative_prompt] if guided else None
    encoded = encode_jobs(checkpoint, jobs)
    return [
        Prepared(prompt, Request(job, latents, contexts[prompt], negative, v.seed))
        for job, latents, prompt in zip(jobs, encoded, v.prompts, strict=True)
    ]


def _job(v: Validation, checkpoint: Checkpoint, index: int) -> Job:
    """The clip and first frame of a prompt at the validation's size and frame rate."""
    image = v.images[index] if v.images else None
    if not v.reference_videos:
        size = {"height": v.height, "width": v.width, "frames": v.frames}
        return plain_job(image, frame_rate=v.frame_rate, **size)
    job, _ = clip_job(
        checkpoint,
        v.reference_videos[index],
        image,
        frame_rate=v.frame_rate,
        height=v.height,
        width=v.width,
        max_frames=v.frames,
    )
    return job
