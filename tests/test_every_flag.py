"""Changing a flag of dub changes what it makes: every flag, so that a new one needs a line here.

The models are stood in for by what depends on all that they are given (helpers/digests.py), and
what real models make of it is the goldens' and the samplers' own tests' matter.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from helpers import digests
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import dub

BASE = {
    "video": "clip.mp4",
    "prompt": "A face says: hello.",
    "lora": "lora.safetensors",
    "model-path": "model.safetensors",
    "text-encoder-path": "gemma",
    "out": "out.mp4",
    "steps": "2",
    "stg-blocks": "1",
}

# Another value of a flag, and other flags without which it means nothing. None for a switch.
OTHER: dict[str, tuple[str | None, dict[str, str]]] = {
    "video": ("other.mp4", {}),
    "prompt": ("A face says: goodbye.", {}),
    "lora": ("other.safetensors", {}),
    "model-path": ("other_model.safetensors", {}),
    "text-encoder-path": ("other_gemma", {}),
    "steps": ("3", {}),
    "guidance-scale": ("2", {}),
    "audio-cfg-guidance-scale": ("2", {}),
    "a2v-guidance-scale": ("2", {}),
    "v2a-guidance-scale": ("2", {}),
    "video-rescale-scale": ("0.5", {}),
    "audio-rescale-scale": ("0.5", {}),
    "stg-scale": ("1", {}),
    "stg-blocks": ("2", {"stg-scale": "1"}),
    "stg-mode": ("stg_v", {"stg-scale": "1"}),
    "negative-prompt": ("silent", {}),
    "seed": ("43", {}),
    "width": ("128", {}),
    "height": ("96", {}),
    "frame-rate": ("24", {}),
    "lora-strength": ("0.5", {}),
    "image": ("picture.png", {}),
    "cross-timestep": ("other", {}),
    "no-cross-attention-masking": (None, {}),
}
# What is made is the same, only not where or how.
SAME = {"out": "copy.mp4", "batch-guidance": "no"}


@pytest.fixture(scope="module")
def files(demo, tmp_path_factory) -> Path:
    """What the flags name, and another of each."""
    folder = tmp_path_factory.mktemp("flags")
    clips, assets = demo / "dataset/clips", demo / "assets"
    shutil.copy(clips / "000_reference.mp4", folder / "clip.mp4")
    shutil.copy(clips / "001_reference.mp4", folder / "other.mp4")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    for name, path in (
        ("lora", demo / "run/checkpoints/lora_weights_step_00060.safetensors"),
        ("model", assets / "ltx-2-tiny.safetensors"),
        ("gemma/model", assets / "gemma/model.safetensors"),
    ):
        tensors = load_file(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        if name.startswith("gemma"):
            shutil.copytree(assets / "gemma", folder / "gemma")
            shutil.copytree(assets / "gemma", folder / "other_gemma")
        else:
            shutil.copy(path, folder / f"{name}.safetensors")
        key = next(
            key for key in tensors if "transformer_blocks.0.attn1.to_q" in key or name[0] == "g"
        )
        tensors[key] = tensors[key] + tensors[key].dtype.type(0.5)
        other = {"lora": "other", "model": "other_model"}.get(name, "other_gemma/model")
        save_file(tensors, folder / f"{other}.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def kept() -> dict[Any, Any]:
    """Loaded weights by their file, and what was made by its flags: neither changes."""
    return {}


@pytest.fixture
def made(files, kept, monkeypatch):
    """What dub makes with other flags, as a hash of the file's pictures and sound."""
    digests.install(monkeypatch, dub)
    monkeypatch.chdir(files)
    load = dub.load_weights

    def loaded(checkpoint: Any, table: Any, model: Any, dtype: Any) -> Any:
        key = str(checkpoint.paths), str(dtype), repr(nnx.graphdef(model))
        return kept.get(key) or kept.setdefault(key, load(checkpoint, table, model, dtype))

    monkeypatch.setattr(dub, "load_weights", loaded)

    def run(change: dict[str, Any]) -> str:
        argv: list[str] = []
        for flag, value in (BASE | change).items():
            argv += [f"--{flag}"] if value is None else [f"--{flag}", value]
        if tuple(argv) not in kept:
            args = dub.parse_arguments(argv)
            dub.main(args)
            kept[tuple(argv)] = digests.of_file(args.out)
        return kept[tuple(argv)]

    return run


@pytest.mark.parametrize("flag", OTHER)
def test_another_value_makes_something_else(made, flag):
    value, others = OTHER[flag]
    assert made(others | {flag: value}) != made(others)


@pytest.mark.parametrize("flag", SAME)
def test_what_is_made_does_not_depend_on_where_and_how(made, flag):
    assert made({flag: SAME[flag]}) == made({})


def test_every_flag_has_its_line(files, monkeypatch):
    monkeypatch.chdir(files)
    argv = [part for flag, value in BASE.items() for part in (f"--{flag}", value)]
    flags = {name.replace("_", "-") for name in vars(dub.parse_arguments(argv))}
    assert flags == OTHER.keys() | SAME.keys()
