"""LoRA files: the torch trainer's, in ComfyUI form.

`diffusion_model.<module>.lora_A.weight` [r, in] and `lora_B.weight` [out, r], with one tensor per
block although ours are stacked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors, save_safetensors
from justdubit_jax.lora.adapters import Adapters, LoRAConfig
from justdubit_jax.lora.dialects import COMFY, Dialect, blocks, name_in_block
from justdubit_jax.lora.record import LoRARecord
from justdubit_jax.weights.checkpoint import some_of


def newest_lora(path: Path) -> Path:
    """The file itself, or the one with the highest step in a folder."""
    if path.is_file():
        return path
    files = [
        file
        for file in path.rglob("*step_*.safetensors")
        if file.stem.rpartition("_")[2].isdigit()
        and "previous" not in file.relative_to(path).parts  # runs that --fresh moved aside
    ]
    if not files:
        raise InputError(f"{path}: no *step_*.safetensors in this folder")
    return max(files, key=lambda p: int(p.stem.rpartition("_")[2]))


def config_of(path: Path) -> LoRAConfig:
    """Rank, alpha and modules of a LoRA file, to `attach` before `read_file`.

    Alpha is the file's metadata's, else the rank. Raises InputError if the file is no LoRA of this
    kind, or has adapters of several ranks.
    """
    with open_tensors(path, "LoRA file") as file:
        metadata = file.metadata() or {}
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    targets, ranks = set(), set()
    for key, shape in shapes.items():
        if (place := COMFY.path(key)) is None:
            raise InputError(
                f"{path}: {key}: expected a LoRA in {COMFY.name} form, {COMFY.pattern}"
            )
        our_path, layer = place
        if our_path.endswith(".A"):
            targets.add(name_in_block(our_path, layer))
            ranks.add(shape[0])
    if not ranks:
        raise InputError(f"{path}: no adapters; expected a LoRA in {COMFY.name} form")
    if len(ranks) > 1:
        several = ", ".join(map(str, sorted(ranks)))
        raise InputError(f"{path}: adapters of ranks {several}; expected one")
    rank = ranks.pop()
    alpha = LoRARecord.from_metadata(metadata, path).alpha
    return LoRAConfig(rank, rank if alpha is None else alpha, 0.0, tuple(sorted(targets)))


def file_tensors(adapters: Mapping[str, Any], dialect: Dialect = COMFY) -> dict[str, Any]:
    """Adapters (arrays or shapes) as the tensors of a LoRA file, one per block."""
    tensors = {
        dialect.key(path, layer): _block(leaf, layer)
        for path, leaf in adapters.items()
        for layer in blocks(path, leaf.shape)
    }
    return dict(sorted(tensors.items()))


def _block(leaf: Any, layer: int | None) -> Any:
    if layer is None:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[layer]


def write_file(
    path: str | Path, adapters: Adapters, dtype: DTypeLike, metadata: Mapping[str, str]
) -> None:
    """Write adapters as a LoRA file, atomically. Raises InputError if one is not finite."""
    tensors = file_tensors({name: np.asarray(leaf) for name, leaf in adapters.items()})
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{path}: not written: {name} is not finite")
    save_safetensors(Path(path), {n: t.astype(dtype) for n, t in tensors.items()}, metadata)


def read_file(path: Path, shapes: Mapping[str, Any]) -> Adapters:
    """Read a LoRA file into adapters of the given shapes: float32, in the host's memory.

    Raises InputError if the file is not a LoRA of exactly these modules, rank and shapes.
    """
    with open_tensors(path, "LoRA file") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    wanted = file_tensors(shapes)
    _check_names(path, found, wanted)
    adapters = {}
    for our_path, leaf in shapes.items():
        tensors = {key: found[key] for key in COMFY.keys_of(our_path, leaf.shape)}
        for key, tensor in tensors.items():
            rank_axis = 0 if our_path.endswith(".A") else 1
            _check_tensor(f"{path}: {key}", tensor, wanted[key].shape, rank_axis)
        stack = np.stack([tensor.astype(np.float32) for tensor in tensors.values()])
        adapters[our_path] = stack.reshape(leaf.shape)
    return adapters


def _check_names(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        raise InputError(
            f"{path}: {len(missing)} missing and {len(unexpected)} unexpected tensors "
            f"({some_of(missing + unexpected, 2)}); expected {len(wanted)}: two for each adapted "
            "module of every block"
        )


def _check_tensor(name: str, tensor: np.ndarray, want: tuple[int, ...], rank_axis: int) -> None:
    got = tensor.shape
    if got != want:
        other_rank = len(got) != len(want) or got[rank_axis] != want[rank_axis]
        reason = "another rank" if other_rank else "made for another base model"
        raise InputError(f"{name} is {list(got)}, expected {list(want)}: {reason}")
    if not np.isfinite(tensor.astype(np.float32)).all():
        raise InputError(f"{name} is not finite")
