"""Preprocessed samples as training batches.

A `.precomputed` folder holds one safetensors file a sample in each of its sub-folders, under the
same relative name. Samples of equal shapes form a bucket, and a batch comes from one bucket.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from safetensors import SafetensorError, safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.models import tokens
from justdubit_jax.training.objective import Batch, Stream

# What the tensor of a sample is called in the files of each role.
TENSORS = {
    "latents": ("latents",),
    "conditions": ("video_context", "audio_context"),
    "audio_latents": ("latents",),
    "reference_latents": ("latents",),
    "reference_audio_latents": ("latents",),
    "masks": ("masks",),
}


# Without end, but the lengths of all buckets together must fit into 63 bits.
_EPOCHS = 2**32


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
        shapes = {
            role: tuple(tuple(file.get_slice(t).get_shape()) for t in TENSORS[role])
            for role, path in sample.files.items()
            for file in [_open(path, role)]
        }
        if "masks" in shapes and shapes["masks"][0] != shapes["latents"][0][1:]:
            raise InputError(
                f"{sample.files['masks']}: mask is {list(shapes['masks'][0])}, expected the "
                f"latents' {list(shapes['latents'][0][1:])}"
            )
        groups[tuple(sorted(shapes.items()))].append(sample)
    return [Bucket(dict(key)["latents"][0][1:], tuple(group)) for key, group in groups.items()]


def read_sample(sample: Sample) -> Batch:
    """One sample as a Batch without the batch axis, float32 numpy."""
    arrays: dict[str, dict[str, Any]] = {}
    fps = 0.0
    for role, path in sample.files.items():
        file = _open(path, role)
        arrays[role] = {t: file.get_tensor(t).astype(np.float32) for t in TENSORS[role]}
        if role == "latents":
            fps = float((file.metadata() or {}).get("fps", 0))
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


@dataclasses.dataclass(frozen=True)
class _Source:
    """Random access to one bucket for Grain: (bucket index, sample index, sample)."""

    index: int
    bucket: Bucket

    def __len__(self) -> int:
        return len(self.bucket.samples)

    def __getitem__(self, index: int) -> tuple[np.int32, np.int32, Batch]:
        sample = read_sample(self.bucket.samples[index])
        return np.int32(self.index), np.int32(index), sample


class Batches:
    """Endless shuffled batches; `state` is the position, a small JSON-able record.

    Each bucket is shuffled anew every epoch and cut into batches across epochs, so no sample is
    dropped; buckets take turns in proportion to their sizes. `host` of `hosts` reads every
    hosts-th sample.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: int,
        threads: int,
        host: int = 0,
        hosts: int = 1,
    ):
        parts = [
            grain.MapDataset.source(_Source(i, bucket))
            .shuffle(seed=seed + i)
            .repeat(_EPOCHS)[host::hosts]
            .batch(batch_size)
            for i, bucket in enumerate(buckets)
        ]
        sizes = [len(bucket.samples) for bucket in buckets]
        mixed = grain.MapDataset.mix(parts, weights=sizes) if len(parts) > 1 else parts[0]
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self.buckets = buckets
        self._samples = batch_size * hosts
        self._iterator = iter(mixed.to_iter_dataset(options))

    def __iter__(self) -> Iterator[tuple[Bucket, list[Sample], Batch]]:
        return self

    def __next__(self) -> tuple[Bucket, list[Sample], Batch]:
        """A batch's bucket, its samples, and the samples stacked."""
        indices, samples, batch = next(self._iterator)
        bucket = self.buckets[int(indices[0])]
        return bucket, [bucket.samples[i] for i in samples], batch

    @property
    def state(self) -> dict[str, Any]:
        """The position: batches taken by every host, and samples in one of all hosts."""
        return {**self._iterator.get_state(), "samples": self._samples}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        taken = dict(state)
        # Other batches begin within the one that holds the first sample not yet seen.
        before = taken.pop("samples")
        taken["next_index"] = taken["next_index"] * before // self._samples
        self._iterator.set_state(taken)


def _open(path: Path, role: str) -> Any:
    try:
        file = safe_open(path, framework="numpy")
        missing = [t for t in TENSORS[role] if t not in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable sample: {error}") from None
    if missing:
        raise InputError(f"{path}: no tensor {missing[0]!r}; was it written by preprocess?")
    return file
