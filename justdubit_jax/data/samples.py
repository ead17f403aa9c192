"""Preprocessed samples: found, read, and put into buckets of equal shapes."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from justdubit_jax.data.batch import Batch, Stream
from justdubit_jax.data.precomputed import TENSORS, open_sample_file
from justdubit_jax.errors import InputError
from justdubit_jax.models import tokens


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip pair on disk: its name and the file of each role."""

    name: str
    files: Mapping[str, Path]


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Samples of equal shapes; `grid` is the target's latent (frames, rows, columns)."""

    grid: tuple[int, int, int]
    samples: tuple[Sample, ...]


def find_samples(root: Path, folders: Mapping[str, str]) -> list[Sample]:
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
        Sample(name.removesuffix(".safetensors"), {r: root / f / name for r, f in folders.items()})
        for name in everything
    ]


def make_buckets(samples: Sequence[Sample]) -> list[Bucket]:
    """Group samples by the shapes in their files' headers. Raises InputError on a bad file."""
    groups: dict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        shapes = {role: _shapes(path, role) for role, path in sample.files.items()}
        if "masks" in shapes and shapes["masks"][0] != shapes["latents"][0][1:]:
            raise InputError(
                f"{sample.files['masks']}: mask is {list(shapes['masks'][0])}, expected the "
                f"latents' {list(shapes['latents'][0][1:])}"
            )
        groups[tuple(sorted(shapes.items()))].append(sample)
    return [Bucket(dict(key)["latents"][0][1:], tuple(group)) for key, group in groups.items()]


def _shapes(path: Path, role: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of the role's tensors, from a file's header."""
    with open_sample_file(path, role) as file:
        return tuple(tuple(file.get_slice(tensor).get_shape()) for tensor in TENSORS[role])


def read_sample(sample: Sample) -> Batch:
    """One sample as a Batch without the batch axis, float32 numpy."""
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
    return Batch(
        video=_stream(
            [tokens.video_tokens(clip[None])[0] for clip in clips],
            [tokens.video_positions(clip.shape[1:], fps) for clip in clips],
            contexts["video_context"],
        ),
        audio=_stream(
            [tokens.audio_tokens(sound[None])[0] for sound in sounds],
            [tokens.audio_positions(sound.shape[1]) for sound in sounds],
            contexts["audio_context"],
        ),
        face_mask=arrays["masks"]["masks"].reshape(-1) if "masks" in arrays else None,
    )


def _stream(both: Sequence[Any], positions: Sequence[Any], context: Any) -> Stream:
    """From the (reference, target) tokens of one modality and their positions."""
    reference, target = both
    joined: Any = np.concatenate(positions, 1)
    return Stream(target, reference, joined, context)
