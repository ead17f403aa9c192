"""The `.precomputed` folder: one safetensors file a sample in each of its sub-folders.

The files of a sample have the same relative name in all of them; index.py lists the samples.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.files import is_temporary, open_tensors, save_safetensors

_SUFFIX = ".safetensors"


def precomputed_root(path: Path) -> Path:
    """The folder, or `.precomputed` in it where it is a data set's, as the torch trainer does."""
    inside = path / ".precomputed"
    return inside if inside.is_dir() else path


def files_below(folder: Path) -> set[str]:
    """Names of the samples that have a file in a folder of a role. Links are followed."""
    names: set[str] = set()
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen and _is_circle(Path(here)):
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = os.path.relpath(here, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        names |= {
            prefix + file.removesuffix(_SUFFIX)
            for file in files
            if file.endswith(_SUFFIX) and file != _SUFFIX and not is_temporary(file)
        }
    return names


def _is_circle(folder: Path) -> bool:
    """Whether a linked folder leads back to one that it lies in."""
    return any(os.path.samefile(folder, parent) for parent in folder.parents)


def metadata_of(output: Path, name: str) -> dict[str, str]:
    return read(output / "latents" / f"{name}.safetensors", "latents")[1]


def read(path: Path, tensor: str) -> tuple[np.ndarray, dict[str, str]]:
    with open_tensors(path, "sample") as file:
        return file.get_tensor(tensor), file.metadata()


def save(
    output: Path,
    role: str,
    name: str,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> dict[str, tuple[int, ...]]:
    """Write a sample's file of a role; returns the shapes in it. Raises InputError for NaN."""
    path = output / role / f"{name}.safetensors"
    for tensor, array in tensors.items():
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise InputError(f"{path}: not written: {tensor} has values that are not finite")
    save_safetensors(path, tensors, metadata)
    return {tensor: array.shape for tensor, array in tensors.items()}


def remove(output: Path, name: str) -> None:
    """Remove the files of a sample."""
    for role in TENSORS:
        (output / role / f"{name}.safetensors").unlink(missing_ok=True)


# What the tensor of a sample is called in the files of each role.
TENSORS = {
    "latents": ("latents",),
    "conditions": ("video_context", "audio_context"),
    "audio_latents": ("latents",),
    "reference_latents": ("latents",),
    "reference_audio_latents": ("latents",),
    "masks": ("masks",),
}


@contextlib.contextmanager
def open_sample_file(path: Path, role: str) -> Iterator[safe_open]:
    """A sample's file of a role, open inside the context. Raises InputError if it is no such."""
    with open_tensors(path, "sample") as file:
        names = file.keys()
        for tensor in TENSORS[role]:
            if tensor not in names:
                raise InputError(f"{path}: no tensor {tensor!r}; was it written by preprocess?")
        yield file
