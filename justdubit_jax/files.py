"""Files that are there whole or not at all: write beside, then rename. Reading safetensors."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from justdubit_jax.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that takes its name when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a crash could leave the name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one of `replacing`, in the making or left by a kill."""
    return name[0] == "." and re.fullmatch(r"\..+\.tmp-\d+(\.\w+)?", name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder, and in those directly below, of killed processes."""
    for pattern in (".*.tmp-*", "*/.*.tmp-*"):
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_tensors(path: Path, kind: str = "safetensors file") -> Iterator[safe_open]:
    """A safetensors file, open inside the context; `kind` says in an error what was expected.

    Raises InputError if the file is missing or damaged, or lacks a tensor that is read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a {kind}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable {kind}: {error}") from None


def save_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically. Raises InputError if the system does not take it."""
    with replacing(path) as temporary:
        # Not ascontiguousarray, which gives a scalar an axis.
        arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        try:
            save_file(arrays, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise InputError(f"{path}: not written: {error}") from None
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner reads


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
