"""The `.precomputed` folder: one safetensors file a sample in each of its sub-folders.

The files of a sample have the same relative name in all of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.files import save_safetensors


def metadata_of(output: Path, name: str) -> dict[str, str]:
    return read(output / "latents" / f"{name}.safetensors", "latents")[1]


def read(path: Path, tensor: str) -> tuple[np.ndarray, dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(tensor), file.metadata()


def save(
    output: Path,
    role: str,
    name: str,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    save_safetensors(output / role / f"{name}.safetensors", tensors, metadata)


def remove(output: Path, name: str) -> None:
    """Files of an earlier run: a clip that has changed and now fails must not leave them."""
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


def open_sample_file(path: Path, role: str) -> Any:
    try:
        file = safe_open(path, framework="numpy")
        missing = [t for t in TENSORS[role] if t not in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable sample: {error}") from None
    if missing:
        raise InputError(f"{path}: no tensor {missing[0]!r}; was it written by preprocess?")
    return file
