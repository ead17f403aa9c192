"""The `.precomputed` folder: one safetensors file a sample in each of its sub-folders.

The files of a sample have the same relative name in all of them; index.py lists the samples.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors, save_safetensors


def precomputed_root(path: Path) -> Path:
    """The folder, or `.precomputed` in it where it is a data set's, as the torch trainer does."""
    inside = path / ".precomputed"
    return inside if inside.is_dir() else path


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
