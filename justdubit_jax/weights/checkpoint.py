"""Weights on disk: an LTX-2 file, a converted folder, a Gemma 3 folder. Headers only are read here.

`open_checkpoint` takes an LTX-2 `.safetensors` file, or the folder that tools/convert_weights.py
makes of one.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors
from justdubit_jax.models.tokens import Layout
from justdubit_jax.weights import arrays, keys
from justdubit_jax.weights.family import unknown_family


def checkpoint_config(path: Path) -> dict[str, Any]:
    """The config of a checkpoint, or of a JSON file that holds it alone."""
    if path.suffix != ".json":
        return open_checkpoint(path).config
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint's config as JSON: {error}") from None


Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class SafetensorsCheckpoint:
    """One or more safetensors files read as one; tensors are read when asked for."""

    paths: tuple[Path, ...]
    config: dict[str, Any]
    shapes: Shapes
    metadata: Mapping[str, str]  # all of it, as strings
    _file_of: Mapping[str, Path]

    @property
    def layout(self) -> Layout:
        """How its codecs cut pixels and sound into latents."""
        return Layout.from_metadata(self.config)

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str, arrays.Index], np.ndarray]]:
        """A function from key and slices to an array; files stay open inside the context."""
        with contextlib.ExitStack() as stack:
            handles = {p: stack.enter_context(safe_open(p, framework="numpy")) for p in self.paths}
            yield lambda key, index: handles[self._file_of[key]].get_slice(key)[index]


@dataclasses.dataclass(frozen=True)
class OrbaxCheckpoint:
    """A folder that tools/convert_weights.py wrote: config.json and one Orbax tree per part."""

    path: Path
    config: dict[str, Any]
    shapes: Shapes

    @property
    def layout(self) -> Layout:
        """How its codecs cut pixels and sound into latents."""
        return Layout.from_metadata(self.config)


Checkpoint = SafetensorsCheckpoint | OrbaxCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open an LTX-2 checkpoint: a `.safetensors` file or a converted folder.

    Raises InputError if it is neither, carries no `config` metadata, or is of another family.
    """
    path = Path(path)
    if path.is_dir():
        listing = path / "checkpoint.json"
        if not listing.is_file():
            raise InputError(f"{path}: not a converted checkpoint: checkpoint.json is missing")
        content = json.loads(listing.read_text())
        shapes = {key: tuple(shape) for key, shape in content["shapes"].items()}
        return OrbaxCheckpoint(path, content["config"], shapes)
    checkpoint = open_safetensors([path])
    if not checkpoint.config:
        raise InputError(f"{path}: no `config` in the file's metadata; is it an LTX-2 checkpoint?")
    if reason := unknown_family(checkpoint.config, checkpoint.metadata):
        raise InputError(f"{path}: {reason}")
    if unknown := unowned(checkpoint.shapes):
        raise InputError(f"{path}: {len(unknown)} tensors of no known part ({some_of(unknown)})")
    return checkpoint


def unowned(shapes: Shapes) -> list[str]:
    """Keys that belong to no part and are not known to be unused."""
    return [key for key in shapes if not keys.owners(key) and key not in keys.UNUSED]


def open_gemma(folder: Path) -> SafetensorsCheckpoint:
    """Open a Hugging Face Gemma 3 folder: config.json and its *.safetensors shards."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: not a Gemma 3 folder: config.json: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [folder / name for name in files]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: not a Gemma 3 folder: no *.safetensors")
    checkpoint = open_safetensors(paths)
    unknown = [
        key
        for key in checkpoint.shapes
        if not keys.GEMMA.path(key) and not keys.matches_any(key, keys.GEMMA_UNUSED)
    ]
    if unknown:
        raise InputError(f"{folder}: {len(unknown)} tensors not of Gemma 3 ({some_of(unknown)})")
    return dataclasses.replace(checkpoint, config=config)


def open_safetensors(paths: Sequence[Path]) -> SafetensorsCheckpoint:
    """Read the headers of safetensors files; raises InputError with the name of a bad one."""
    config, shapes, file_of, metadata = {}, {}, {}, {}
    for path in paths:
        with open_tensors(path) as file:
            metadata |= (own := file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 (not a dict)
                shapes[key] = tuple(file.get_slice(key).get_shape())
                file_of[key] = path
        try:
            config |= json.loads(own.get("config", "{}"))
        except ValueError as error:
            raise InputError(f"{path}: the file's `config` is not JSON: {error}") from None
    return SafetensorsCheckpoint(tuple(paths), config, shapes, metadata, file_of)


def some_of(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
