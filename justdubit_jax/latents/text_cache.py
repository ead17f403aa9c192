"""Prompts to contexts, encoded once: the text encoder is gone before anything else is loaded.

Contexts are cached on disk under a hash of the prompt, the encoder and the checkpoint, so that a
second start does not load the encoder at all. Of several processes, which share that folder, the
first encodes and the others read.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils

from justdubit_jax.devices import processes
from justdubit_jax.devices.choose import default_dtype
from justdubit_jax.files import open_tensors, save_safetensors
from justdubit_jax.latents.shapes import Contexts
from justdubit_jax.latents.text import text_encoder
from justdubit_jax.weights.checkpoint import Checkpoint

_TENSORS: tuple[str, str] = "video_context", "audio_context"  # of a cached prompt


def cached_contexts(
    prompts: Sequence[str], checkpoint: Checkpoint, model_path: Path, gemma: Path, cache: Path
) -> dict[str, Contexts]:
    """(video context, audio context) of each prompt, from the cache or the text encoder."""
    stamp = f"{_stamp(model_path)} {_stamp(gemma)} {np.dtype(default_dtype())}"
    files = {p: cache / f"{_hash(stamp, p)}.safetensors" for p in dict.fromkeys(prompts)}
    missing = [prompt for prompt, file in files.items() if not file.exists()]
    if missing and processes.is_first():
        encoder = text_encoder(checkpoint, gemma, default_dtype())
        for prompt in missing:
            tensors = dict(zip(_TENSORS, encoder([prompt])[0], strict=True))
            save_safetensors(files[prompt], tensors, {"prompt": prompt})
        del encoder
    # The others wait here. Their copies of the encoder may have other times, and so other hashes.
    hashes = np.array([list(file.stem.encode()) for file in files.values()], np.uint8)
    hashes = multihost_utils.broadcast_one_to_all(hashes).astype(np.uint8)
    names = [f"{row.tobytes().decode()}.safetensors" for row in hashes]
    return {prompt: _read(cache / name) for prompt, name in zip(files, names, strict=True)}


def _read(path: Path) -> Contexts:
    with open_tensors(path, "cached prompt") as file:
        video, audio = (file.get_tensor(name) for name in _TENSORS)
    return video, audio


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _stamp(path: Path) -> str:
    """Names, sizes and times of the files: hashing 67 GB would take longer than encoding."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return f"{path.resolve()} {stats}"
