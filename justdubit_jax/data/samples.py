"""Preprocessed samples: found, grouped by their shapes, and read."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from justdubit_jax.data import index
from justdubit_jax.data.batch import Sample, SampleShape, StreamShape, StreamTokens
from justdubit_jax.data.precomputed import TENSORS, open_sample_file, precomputed_root
from justdubit_jax.data.walk import files_below
from justdubit_jax.errors import InputError
from justdubit_jax.models import tokens
from justdubit_jax.models.tokens import Layout

Shapes = Mapping[str, tuple[int, ...]]  # by tensor


@dataclasses.dataclass(frozen=True)
class SampleFiles:
    """One clip pair on disk: its name and the file of each role.

    `shapes` of the tensors in them, by role, as the list of the folder says; None: it has no list.
    """

    name: str
    files: Mapping[str, Path]
    shapes: Mapping[str, Shapes] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ShapeGroup:
    """Samples of equal shapes, which share a compiled step and its batches."""

    shape: SampleShape
    samples: tuple[SampleFiles, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """The samples of a folder, and where it says so."""

    root: Path
    samples: list[SampleFiles]
    has_list: bool  # of what the data set says; else all files are taken
    linked: int  # samples that are in linked folders and not in the list
    left_out: list[str]  # names of files that are there and not in the list

    def __str__(self) -> str:
        count = f"{self.root}: {len(self.samples)} samples"
        if not self.has_list:
            return f"{count} found in its folders (it has no {index.FILE})"
        text = f"{count}, of {index.FILE}"
        if self.linked:
            text += f" and {self.linked} in linked folders"
        if self.left_out:
            text += f"; left out, as no row of the data set made them: {some_of(self.left_out)}"
        return text


def some_of(names: Sequence[str], shown: int = 5) -> str:
    """How many they are, and the first of them."""
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} ({', '.join(names[:shown])}{more})"


def find_samples(root: Path, folders: Mapping[str, str]) -> list[SampleFiles]:
    """The samples of `survey`."""
    return survey(root, folders).samples


def survey(root: Path, folders: Mapping[str, str]) -> Found:
    """The samples of a data set, sorted by name; `folders` maps roles to folders below root.

    They are those of the list that preprocessing keeps, and those in linked folders, which a
    person has put there. A folder without a list is walked. root may also be the data set's
    folder, with `.precomputed` in it. Raises InputError if there is none, or one lacks a
    companion file.
    """
    root = precomputed_root(root)
    walked = {role: files_below(root / folder) for role, folder in folders.items()}
    names = {role: files.names for role, files in walked.items()}
    there = set(filter(_is_sample, set().union(*names.values())))
    listed = index.listed(root)
    # Not a folder of the list's own that was moved to another disk.
    own = {name.rpartition("/")[0] for name in listed or ()}
    behind = there.intersection(set().union(*(files.linked for files in walked.values())))
    linked = {name for name in behind if name.rpartition("/")[0] not in own}
    wanted = sorted(there if listed is None else linked.union(listed))
    if not wanted:
        raise InputError(f"{root}: no preprocessed samples; {_instead(root, listed, there)}")
    for name in wanted:
        for role, folder in folders.items():
            if name not in names[role]:
                missing = f"{folder}/{name}.safetensors is missing"
                raise InputError(f"{root}: sample {name} is incomplete: {missing}")

    bases = {role: str(root / folder) for role, folder in folders.items()}

    def files_of(name: str) -> SampleFiles:
        files = {role: Path(f"{base}/{name}.safetensors") for role, base in bases.items()}
        if listed is None or name not in listed:
            return SampleFiles(name, files)
        said = listed[name]
        shapes = {role: said.get(folder, {}) for role, folder in folders.items()}
        return SampleFiles(name, files, shapes)

    samples = [files_of(name) for name in wanted]
    left_out = sorted(there.difference(wanted))
    return Found(root, samples, listed is not None, len(linked.difference(listed or ())), left_out)


def _is_sample(name: str) -> bool:
    """Not what macOS puts beside a file on a foreign disk."""
    return not PurePosixPath(name).name.startswith("._")


def _instead(root: Path, listed: object, there: Collection[str]) -> str:
    """What there is where samples were expected."""
    if listed is not None:
        return f"{index.FILE} lists none" + (f" of the {len(there)} there" if there else "")
    if next((root / "latents").rglob("*.pt"), None):
        return "its .pt files are the torch trainer's: preprocess the data set anew"
    return "expected latents/*.safetensors, here or in .precomputed"


def group_by_shape(samples: Sequence[SampleFiles]) -> list[ShapeGroup]:
    """Groups by the shapes that the list says, else in the files' headers.

    Raises InputError on a bad file.
    """
    groups: dict[SampleShape, list[SampleFiles]] = defaultdict(list)
    for sample in samples:
        groups[_shape(sample)].append(sample)
    return [ShapeGroup(shape, tuple(group)) for shape, group in groups.items()]


def _shape(sample: SampleFiles) -> SampleShape:
    """A sample's sizes."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for role, path in sample.files.items():
        said = (sample.shapes or {}).get(role, {})
        if all(name in said for name in TENSORS[role]):
            shapes[role] = [said[name] for name in TENSORS[role]]
            continue
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
        _check_shapes(path, arrays[role], (sample.shapes or {}).get(role, {}))
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


def _check_shapes(path: Path, arrays: Mapping[str, Any], said: Shapes) -> None:
    """That a file is as the list says, which is not checked before it is read."""
    for name, array in arrays.items():
        if name in said and array.shape != said[name]:
            raise InputError(
                f"{path}: {name} is {list(array.shape)}, {index.FILE} says {list(said[name])}; "
                "preprocess the data set again"
            )


def _stream(both: Sequence[Any], positions: Sequence[Any], context: Any) -> StreamTokens:
    """From the (reference, target) tokens of one modality and their positions."""
    reference, target = both
    joined: Any = np.concatenate(positions, 1)
    return StreamTokens(target, reference, joined, context)
