"""Stand-ins for models that are dear to run: what they make depends on all that they are given.

A loop that samples, and encoders of text, pictures and sound, whose results are noise by a hash of
their inputs: so two results are equal if and only if the inputs were.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from justdubit_jax.dubbing import job, sample
from justdubit_jax.latents import text_cache


def of(*things: Any) -> str:
    """A hash of arrays and plain values, in any tree."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(things):
        array = None if isinstance(leaf, str) else np.asarray(leaf)
        found.update(f"{path} {'' if array is None else (array.shape, array.dtype)}".encode())
        found.update(leaf.encode() if array is None else array.tobytes())
    return found.hexdigest()


def noise(shape: tuple[int, ...], *things: Any) -> np.ndarray:
    seed = int(of(*things)[:16], 16)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_file(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _loop(graphdef: Any, settings: Any, mesh: Any) -> Any:
    # What runs side by side is how, not what; a model's devices likewise.
    plain = dataclasses.replace(settings, batched=True)

    def run(weights: Any, conditions: Any, sampled: Any, levels: Any) -> Any:
        given = repr(plain), repr(graphdef), tuple(weights), conditions, sampled, levels
        numbered = enumerate(sampled)
        return tuple(jnp.asarray(noise(x.shape, *given, str(k))) for k, x in numbered)

    return run


def _text_encoder(checkpoint: Any, folder: Any, dtype: Any) -> Any:
    width = {"video": 64, "audio": 64}
    model = of_file(Path(folder) / "model.safetensors")

    def encode(prompts: Any) -> Any:
        return [tuple(noise((1024, w), p, model, s) for s, w in width.items()) for p in prompts]

    return encode


def _video_encoder(*_: Any) -> Any:
    def encode(clips: Any) -> Any:
        made = []
        for frames in clips:
            count, height, width, _ = frames.shape
            shape = 16, 1 + (count - 1) // 8, height // 32, width // 32
            made.append(noise(shape, np.asarray(frames)))
        return made

    return encode


def _audio_encoder(*_: Any) -> Any:
    return lambda sound: noise((8, sound.shape[-1] // 640 + 1, 16), np.asarray(sound))


def _decode(checkpoint: Any, latents: Any) -> Any:
    for picture, sound in latents:
        _, count, height, width = picture.shape
        shape = 8 * count - 7, 32 * height, 32 * width, 3
        frames = (127 + 20 * noise(shape, picture)).clip(0, 255).astype(np.uint8)
        yield iter([frames]), noise((2, 24000), sound).clip(-1, 1), 24000


def install(monkeypatch: pytest.MonkeyPatch, *decoding: Any) -> None:
    """Put them in the place of the models of `dubbing`; `decoding` are modules that decode."""
    monkeypatch.setattr(sample, "compiled_loop", _loop)
    monkeypatch.setattr(job, "text_encoder", _text_encoder)
    monkeypatch.setattr(text_cache, "text_encoder", _text_encoder)
    monkeypatch.setattr(job, "video_encoder", _video_encoder)
    monkeypatch.setattr(job, "audio_encoder", _audio_encoder)
    for module in decoding:
        monkeypatch.setattr(module, "decode_samples", _decode)
