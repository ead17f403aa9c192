"""LoRA files: the torch trainer's, in ComfyUI form.

`diffusion_model.<module>.lora_A.weight` [r, in] and `lora_B.weight` [out, r], with one tensor per
block although ours are stacked.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from justdubit_jax.errors import InputError
from justdubit_jax.files import save_safetensors
from justdubit_jax.lora.adapters import Adapters, LoRAConfig, names
from justdubit_jax.lora.record import LoRARecord
from justdubit_jax.weights.keys import TRANSFORMER


def newest_lora(path: Path) -> Path:
    """The file itself, or the one with the highest step in a folder."""
    if path.is_file():
        return path
    files = [p for p in path.rglob("*step_*.safetensors") if p.stem.rpartition("_")[2].isdigit()]
    if not files:
        raise InputError(f"config: model.load_checkpoint: {path} has no *step_*.safetensors")
    return max(files, key=lambda p: int(p.stem.rpartition("_")[2]))


FILE_PREFIX = "diffusion_model."


def config_of(path: Path) -> LoRAConfig:
    """Rank, alpha and modules of a LoRA file, to `attach` before `read_file`.

    Alpha is the file's metadata's, else the rank. Raises InputError if the file is no LoRA of this
    kind, or has adapters of several ranks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable LoRA file: {error}") from None
    suffix = ".lora_A.weight"
    downs = {key: shape[0] for key, shape in shapes.items() if key.endswith(suffix)}
    if not downs or not all(key.startswith(FILE_PREFIX) for key in downs):
        raise InputError(f"{path}: no {FILE_PREFIX}*{suffix}; expected a LoRA in ComfyUI form")
    ranks = sorted(set(downs.values()))
    if len(ranks) > 1:
        raise InputError(f"{path}: adapters of ranks {', '.join(map(str, ranks))}; expected one")
    modules = {key.removeprefix(FILE_PREFIX).removesuffix(suffix) for key in downs}
    targets = {re.sub(r"^transformer_blocks\.\d+\.", "", module) for module in modules}
    alpha = LoRARecord.from_metadata(metadata, path).alpha
    return LoRAConfig(ranks[0], ranks[0] if alpha is None else alpha, 0.0, tuple(sorted(targets)))


def file_tensors(adapters: Mapping[str, Any]) -> dict[str, Any]:
    """Adapters (arrays or shapes) as the tensors of a LoRA file, one per block."""
    tensors = {}
    for path, leaf in adapters.items():
        leaf_names = [f"{FILE_PREFIX}{name}.weight" for name in names(path, leaf.shape)]
        stacked = TRANSFORMER.is_stacked(f"{path.rpartition('.lora.')[0]}.weight")
        for i, name in enumerate(leaf_names):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                shape = leaf.shape[1:] if stacked else leaf.shape
                tensors[name] = jax.ShapeDtypeStruct(shape, leaf.dtype)
            else:
                tensors[name] = leaf[i] if stacked else leaf
    return dict(sorted(tensors.items()))


def write_file(path: Path, adapters: Adapters, dtype: Any, metadata: Mapping[str, str]) -> None:
    """Write adapters as a LoRA file, atomically. Raises InputError if one is not finite."""
    tensors = file_tensors({name: np.asarray(leaf) for name, leaf in adapters.items()})
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{path}: not written: {name} is not finite")
    save_safetensors(path, {n: t.astype(dtype) for n, t in tensors.items()}, metadata)


def read_file(path: Path, shapes: Mapping[str, Any]) -> Adapters:
    """Read a LoRA file into float32 adapters of the given shapes.

    Raises InputError if the file is not a LoRA of exactly these modules, rank and shapes.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable LoRA file: {error}") from None
    wanted = file_tensors(shapes)
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        first = ", ".join((missing + unexpected)[:2])
        raise InputError(
            f"{path}: {len(missing)} missing and {len(unexpected)} unexpected tensors for "
            f"lora.target_modules of this run ({first}, …)"
        )
    for key, leaf in wanted.items():
        if found[key].shape != leaf.shape:
            got, want = list(found[key].shape), list(leaf.shape)
            raise InputError(f"{path}: {key} is {got}, expected {want} (lora.rank of this run)")
        if not np.isfinite(found[key].astype(np.float32)).all():
            raise InputError(f"{path}: {key} is not finite")
    adapters = {}
    for our_path, leaf in shapes.items():
        leaf_names = [f"{FILE_PREFIX}{name}.weight" for name in names(our_path, leaf.shape)]
        blocks = np.stack([found[name].astype(np.float32) for name in leaf_names])
        adapters[our_path] = jnp.asarray(blocks.reshape(leaf.shape))
    return adapters
