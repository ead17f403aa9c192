"""Preprocessed samples: found, read, and grouped by their shapes."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from justdubit_jax.data.batch import Sample, SampleShape, StreamShape, StreamTokens
from justdubit_jax.data.precomputed import TENSORS, open_sample_file
from justdubit_jax.errors import InputError
from justdubit_jax.models import tokens
from justdubit_jax.models.tokens import Layout


@dataclasses.dataclass(frozen=True)
class SampleFiles:
    """One clip pair on disk: its name and the file of each role."""

    name: str
    files: Mapping[str, Path]


@dataclasses.dataclass(frozen=True, eq=False)
class ShapeGroup:
    """Samples of equal shapes, which share a compiled step and its batches."""

    shape: SampleShape
    samples: tuple[SampleFiles, ...]


def find_samples(root: Path, folders: Mapping[str, str]) -> list[SampleFiles]:
    """Every sample of a data set, sorted by name; `folders` maps roles to folders below root.

    Raises InputError if there is none, or one lacks a companion file.
    """
    names = {
        role: {
            p.relative_to(root / folder).as_posix()
            for p in (root / folder).rglob("[!.]*.safetensors")
        }
        for role, folder in folders.items()
    }
    everything = sorted(set().union(*names.values()))
    if not everything:
        raise InputError(f"{root}: no preprocessed samples; expected latents/*.safetensors")
    for name in everything:
        for role, folder in folders.items():
            if name not in names[role]:
                raise InputError(f"{root}: sample {name} is incomplete: {folder}/{name} is missing")
    return [
        SampleFiles(
            name.removesuffix(".safetensors"), {r: root / f / name for r, f in folders.items()}
        )
        for name in everything
    ]


def group_by_shape(samples: Sequence[SampleFiles]) -> list[ShapeGroup]:
    """Groups by the shapes in the files' headers. Raises InputError on a bad file."""
    groups: dict[SampleShape, list[SampleFiles]] = defaultdict(list)
    for sample in samples:
        groups[_read_shape(sample)].append(sample)
    return [ShapeGroup(shape, tuple(group)) for shape, group in groups.items()]


def _read_shape(sample: SampleFiles) -> SampleShape:
    """A sample's sizes, from the headers of its files."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for role, path in sample.files.items():
        with open_sample_file(path, role) as file:
            shapes[role] = [tuple(file.get_slice(name).get_shape()) for name in TENSORS[role]]
    (channels, *grid), *_ = shapes["latents"]
    if "masks" in shapes and (mask := shapes["masks"][0]) != tuple(grid):
        raise InputError(
            f"{sample.files['masks']}: mask is {list(mask)}, expected the latents' {grid}"
        )
    video_text, audio_text = shapes["conditions"]
    reference, sound, reference_sound = (
        shapes[role][0]
        for role in ("reference_latents", "audio_latents", "reference_audio_latents")
    )
    frames, rows, columns = grid
    return SampleShape(
        grid=(frames, rows, columns),
        video=StreamShape(math.prod(grid), math.prod(reference[1:]), channels, 3, *video_text),
        audio=StreamShape(sound[1], reference_sound[1], sound[0] * sound[2], 1, *audio_text),
        has_mask="masks" in shapes,
    )


def read_sample(sample: SampleFiles, layout: Layout) -> Sample:
    """A sample's tokens and positions, float32 numpy."""
    arrays: dict[str, dict[str, Any]] = {}
    fps = 0.0
    for role, path in sample.files.items():
        with open_sample_file(path, role) as file:
            arrays[role] = {t: file.get_tensor(t).astype(np.float32) for t in TENSORS[role]}
            metadata = file.metadata() or {}
        if role == "latents":
            fps = float(metadata.get("fps", 0))
            if not fps > 0:
                raise InputError(f"{path}: no fps in the file's metadata")
    clips = [arrays[role]["latents"] for role in ("reference_latents", "latents")]
    sounds = [arrays[role]["latents"] for role in ("reference_audio_latents", "audio_latents")]
    contexts = arrays["conditions"]
    return Sample(
        video=_stream(
            [tokens.video_tokens(clip[None])[0] for clip in clips],
            [layout.video_positions(clip.shape[1:], fps) for clip in clips],
            contexts["video_context"],
        ),
        audio=_stream(
            [tokens.audio_tokens(sound[None])[0] for sound in sounds],
            [layout.audio_positions(sound.shape[1]) for sound in sounds],
            contexts["audio_context"],
        ),
        face_mask=arrays["masks"]["masks"].reshape(-1) if "masks" in arrays else None,
    )


def _stream(both: Sequence[Any], positions: Sequence[Any], context: Any) -> StreamTokens:
    """From the (reference, target) tokens of one modality and their positions."""
    reference, target = both
    joined: Any = np.concatenate(positions, 1)
    return StreamTokens(target, reference, joined, context)
