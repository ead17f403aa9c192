"""A row of a data set as arrays in the shape of its bucket."""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from justdubit_jax.clips.facts import LARGE_CROP, ClipFacts, Finding
from justdubit_jax.clips.frames import is_image
from justdubit_jax.clips.masks import mask_findings, read_mask
from justdubit_jax.clips.read import Clip, Shape, read_clip
from justdubit_jax.clips.sound import Sound as FileSound
from justdubit_jax.clips.sound import read_sound
from justdubit_jax.clips.timeline import same_rate
from justdubit_jax.data.rows import Row
from justdubit_jax.errors import InputError
from justdubit_jax.latents.shapes import Frames, Sound
from justdubit_jax.models.tokens import Layout
from justdubit_jax.preprocessing.buckets import Bucket, choose_bucket, pool_mask

_OTHER_ASPECT = 0.02


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A row's media in the shape of its bucket."""

    row: Row
    bucket: Bucket
    fps: Fraction
    frames: Frames
    reference_frames: Frames | None
    mask: np.ndarray | None
    sound: Sound | None
    reference_sound: Sound | None
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def load_row(
    row: Row,
    shapes: Sequence[Bucket],
    sample_rate: int,
    layout: Layout,
    frame_rate: Fraction | None = None,
    strict_rate: bool = False,
) -> Loaded:
    """Read a row's files into its bucket; sample_rate 0 leaves the sound out.

    Target, reference and mask come at one rate: `frame_rate`, or the target's own. What is odd
    about a file that can be used is in `findings`, how it was taken in `facts`. Raises InputError
    naming the file: unreadable, too short, another frame rate, no sound.
    """
    longest = max(bucket.frames for bucket in shapes)

    def choose(count: int, height: int, width: int) -> Shape:
        return Shape(*choose_bucket(count, height, width, shapes))

    clip = read_clip(row.clip, choose, longest, frame_rate, strict_rate)
    bucket = Bucket(*clip.frames.shape[:3])
    clips = {"media": (row.clip, clip)}

    if row.reference:
        if is_image(row.reference):
            raise InputError(f"{row.reference}: a still picture, expected a clip")
        reference = read_clip(
            row.reference, lambda *_: Shape(*bucket), bucket.frames, clip.fps, strict_rate
        )
        clips["reference"] = (row.reference, reference)
    if row.mask:
        clips["mask"] = (row.mask, read_mask(row.mask, *bucket, clip.fps, strict_rate))
    for path, other in list(clips.values())[1:]:
        _check_companion(path, other, row.clip, clip, bucket, resample=frame_rate is not None)

    sounds: dict[str, FileSound] = {}
    if sample_rate:
        seconds = Fraction(bucket.frames) / clip.fps
        for role in clips.keys() - {"mask"}:
            path, other = clips[role]
            sounds[role] = read_sound(path, sample_rate, seconds, other.start)
    mask, findings = None, _findings(clips)
    if row.mask:
        white = clips["mask"][1].frames.mean(-1, dtype=np.float32) / 255
        mask = pool_mask(white, layout)
        findings += mask_findings(row.mask, white)
    for role in sorted(sounds):
        findings += sounds[role].findings
    return Loaded(
        row=row,
        bucket=bucket,
        fps=clip.fps,
        frames=clip.frames,
        reference_frames=clips["reference"][1].frames if row.reference else None,
        mask=mask,
        sound=sounds["media"].samples if sounds else None,
        reference_sound=sounds["reference"].samples if sounds and row.reference else None,
        facts={
            role: other.facts.metadata() | (sounds[role].metadata() if role in sounds else {})
            for role, (_, other) in clips.items()
        },
        findings=tuple(findings),
    )


def _check_companion(
    path: Path, other: Clip, target: Path, clip: Clip, bucket: Bucket, resample: bool
) -> None:
    """Raise InputError where a reference or mask cannot lie beside its clip."""
    still = other.facts.frames == 1
    own = other.facts.own_rate
    if not (resample or still or same_rate(clip.fps, own, bucket.frames)):
        raise InputError(
            f"{path}: {float(own):g} frames per second, {target} has {float(clip.fps):g}; both "
            "must be the same, or both be resampled to a given rate"
        )
    if len(other.frames) < bucket.frames:
        raise InputError(
            f"{path}: {len(other.frames)} frames, {target} needs {bucket.frames} (its bucket)"
        )


def _findings(clips: Mapping[str, tuple[Path, Clip]]) -> list[Finding]:
    """What is odd about the pictures of a row."""
    path, clip = clips["media"]
    findings = []
    side, lost = clip.facts.crop
    if lost >= LARGE_CROP:
        text = f"{100 * lost:.0f} % of its {side} is cut off to fill the bucket"
        findings.append(Finding(path, "crop", text))
    for role, (other_path, other) in clips.items():
        if other.facts.variable:
            (note,) = other.facts.rate_notes()
            findings.append(Finding(other_path, "variable-rate", note))
        own, wanted = _aspect(other.facts), _aspect(clip.facts)
        if role != "media" and abs(own / wanted - 1) > _OTHER_ASPECT:
            text = f"its aspect is {own:.3f}, {path} has {wanted:.3f}: they are not cropped alike"
            findings.append(Finding(other_path, "aspect", text))
        if role == "mask" and other.facts.colour == "alpha channel":
            findings.append(Finding(other_path, "mask-alpha", "its alpha channel is the mask"))
    return findings


def _aspect(facts: ClipFacts) -> float:
    width, height = facts.shown
    return width / height
