"""What is dubbed: the clip and the first frame, read and encoded; and what comes out, decoded.

Models are loaded for their turn only: the encoders before the transformer samples, the decoders
after it, so none stands beside another.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from justdubit_jax.clips.fit import fit_clip, fit_image
from justdubit_jax.clips.sound import read_sound
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.latents.audio import audio_decoder, audio_encoder
from justdubit_jax.latents.shapes import Contexts, Frames, LatentPair, Latents, Sound
from justdubit_jax.latents.text import text_encoder
from justdubit_jax.latents.tiling import default_tiling
from justdubit_jax.latents.video import video_decoder, video_encoder
from justdubit_jax.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Job:
    """What to sample: 8k+1 frames of a legal size, and what conditions it."""

    frames: int
    height: int
    width: int
    fps: Fraction
    reference: Frames | None  # the clip to dub, of the same shape
    sound: Sound | None  # its sound, at the audio VAE's rate
    image: UInt8[np.ndarray, "1 _y _x 3"] | None  # the first frame


def clip_job(
    checkpoint: Checkpoint,
    clip: str | Path,
    image: str | Path | None = None,
    *,
    frame_rate: Fraction | None = None,
    height: int | None = None,
    width: int | None = None,
    max_frames: int | None = None,
) -> tuple[Job, list[str]]:
    """To dub a clip, from its first frame or a given picture, and what was done to it in words.

    What is None follows from the clip (see clips.fit.fit_clip). Raises InputError for what cannot
    be read or does not fit.
    """
    layout = checkpoint.layout
    fitted = fit_clip(clip, layout, frame_rate, height, width, max_frames)
    count, rows, columns, _ = fitted.frames.shape
    sound = read_sound(clip, layout.sample_rate, fitted.seconds, fitted.start)
    job = Job(
        frames=count,
        height=rows,
        width=columns,
        fps=fitted.fps,
        reference=fitted.frames,
        sound=sound.samples,
        image=None if image is None else fit_image(image, rows, columns),
    )
    return job, [*fitted.notes, *(finding.text for finding in sound.findings)]


def plain_job(
    image: Path | None, *, frame_rate: Fraction, height: int, width: int, frames: int
) -> Job:
    """To make a clip without a reference, from a given first frame or from none."""
    first = None if image is None else fit_image(image, height, width)
    return Job(frames, height, width, frame_rate, None, None, first)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A job's conditions as latents; None where there are none."""

    reference: Latents | None
    sound: Latents | None
    image: Latents | None


def encode_jobs(checkpoint: Checkpoint, jobs: Sequence[Job]) -> list[Encoded]:
    """Encode the conditions of all jobs; the encoders are on the device only meanwhile."""
    video = video_encoder(checkpoint, default_dtype(), default_tiling(checkpoint.layout))
    audio = audio_encoder(checkpoint)
    return [
        Encoded(
            reference=None if job.reference is None else video([job.reference])[0],
            sound=None if job.sound is None else audio(job.sound),
            image=None if job.image is None else video([job.image])[0],
        )
        for job in jobs
    ]


@dataclasses.dataclass(frozen=True)
class Request:
    """One clip to sample: its job, encoded; the contexts of its prompt and, for guidance, of the
    negative prompt; and the seed of its noise."""

    job: Job
    encoded: Encoded
    prompt: Contexts
    negative: Contexts | None
    seed: int

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What requests have in common that can stand in one batch."""
        parts = self.encoded.reference, self.encoded.sound, self.encoded.image
        size = self.job.frames, self.job.height, self.job.width
        return *size, *(None if x is None else x.shape for x in parts)


def make_request(
    checkpoint: Checkpoint,
    job: Job,
    gemma: str | Path,
    prompt: str,
    negative: str | None = None,
    seed: int = 0,
) -> Request:
    """A job and its prompts, encoded one model after the other; `negative` where cfg is on."""
    encode_text = text_encoder(checkpoint, Path(gemma), default_dtype())
    contexts = [encode_text([text])[0] for text in (prompt, negative) if text is not None]
    del encode_text
    (encoded,) = encode_jobs(checkpoint, [job])
    return Request(job, encoded, contexts[0], contexts[1] if negative is not None else None, seed)


def decode_samples(
    checkpoint: Checkpoint, latents: Sequence[LatentPair]
) -> Iterator[tuple[Iterator[Frames], Sound, int]]:
    """Picture, sound and sample rate of each sample; one decoder after the other is on the device.

    A picture comes in pieces, decoded as they are asked for: a clip is never held as a whole.
    """
    audio, rate = audio_decoder(checkpoint)
    sounds = [audio(sound) for _, sound in latents]
    del audio
    video = video_decoder(checkpoint, default_dtype(), default_tiling(checkpoint.layout))
    for (picture, _), sound in zip(latents, sounds, strict=True):
        yield video(picture), sound, rate
