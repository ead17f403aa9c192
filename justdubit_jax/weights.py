"""Checkpoints into models: strict, lazy, one tensor at a time.

`open_checkpoint` takes an LTX-2 `.safetensors` file, or the folder that tools/convert_weights.py
makes of one; `load` fills a model with a part of it. Nothing is skipped in silence: missing,
unexpected and mis-shaped tensors of a part are gathered and raised once.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from justdubit_jax import keys
from justdubit_jax.errors import InputError
from justdubit_jax.keys import Part
from justdubit_jax.models.layers import Frozen

Shapes = Mapping[str, tuple[int, ...]]
Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# These small tables are float32 in the published files and stay so in a bfloat16 run: they are
# added to the timestep's modulation, which is computed in float32.
_FLOAT32 = ("{}scale_shift_table",)


@dataclasses.dataclass(frozen=True)
class SafetensorsCheckpoint:
    """One or more safetensors files read as one; tensors are read when asked for."""

    paths: tuple[Path, ...]
    config: dict[str, Any]
    shapes: Shapes
    _file_of: Mapping[str, Path]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], np.ndarray]]:
        """A function from key to array; files stay open (memory-mapped) inside the context."""
        with contextlib.ExitStack() as stack:
            handles = {p: stack.enter_context(safe_open(p, framework="numpy")) for p in self.paths}
            yield lambda key: handles[self._file_of[key]].get_tensor(key)


@dataclasses.dataclass(frozen=True)
class OrbaxCheckpoint:
    """A folder that tools/convert_weights.py wrote: config.json and one Orbax tree per part."""

    path: Path
    config: dict[str, Any]
    shapes: Shapes


Checkpoint = SafetensorsCheckpoint | OrbaxCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open an LTX-2 checkpoint: a `.safetensors` file or a converted folder.

    Raises InputError if it is neither, or carries no `config` metadata.
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
    return checkpoint


def open_safetensors(paths: Sequence[Path]) -> SafetensorsCheckpoint:
    """Read the headers of safetensors files; raises InputError with the name of a bad one."""
    config, shapes, file_of = {}, {}, {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a .safetensors file")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    shapes[key] = tuple(file.get_slice(key).get_shape())
                    file_of[key] = path
            config |= json.loads(metadata.get("config", "{}"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a readable safetensors file: {error}") from None
    return SafetensorsCheckpoint(tuple(paths), config, shapes, file_of)


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The base weights of a model (abstract or not) by dotted path."""
    flat = nnx.to_flat_state(nnx.state(model, Frozen))
    return {".".join(map(str, path)): variable for path, variable in flat}


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """What is wrong between a part and a checkpoint, as checkpoint keys."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        fields = dataclasses.asdict(self).items()
        return "; ".join(f"{len(v)} {k} ({_some(v)})" for k, v in fields if v)


def expected(part: Part, model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Checkpoint key -> shape of every tensor that the model reads."""
    wanted = {}
    for path, variable in parameters(model).items():
        shape = tuple(variable.shape)
        if part.is_stacked(path):
            wanted |= {part.key(path, layer): shape[1:] for layer in range(shape[0])}
        else:
            wanted[part.key(path)] = shape
    return wanted


def compare(part: Part, model: nnx.Module, shapes: Shapes) -> Mismatch:
    """Check a part's names and shapes against a checkpoint's, both ways."""
    wanted = expected(part, model)
    owned = [key for key in shapes if _owns(part, key)]
    return Mismatch(
        missing=[key for key in wanted if key not in shapes],
        unexpected=[key for key in owned if key not in wanted],
        misshaped=[
            f"{key} {list(shapes[key])}, expected {list(shape)}"
            for key, shape in wanted.items()
            if key in shapes and tuple(shapes[key]) != shape
        ],
    )


def load[Model: nnx.Module](
    checkpoint: Checkpoint,
    part: Part,
    model: Model,
    dtype: DTypeLike,
    shardings: Shardings | None = None,
) -> Model:
    """A copy of an abstract model with its base weights read from the checkpoint.

    `shardings(path, shape)` places every array; by default on the first device. Stacked arrays are
    filled on the device block by block, so the host holds one tensor at a time. Variables that are
    not base weights (LoRA) stay as they are. Raises InputError naming every mismatch.
    """
    if mismatch := compare(part, model, checkpoint.shapes):
        where = checkpoint.path if isinstance(checkpoint, OrbaxCheckpoint) else checkpoint.paths[0]
        raise InputError(f"{where}: {part.name} does not fit: {mismatch}")
    place = shardings or (lambda path, shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    graphdef, state = nnx.split(model)
    targets = {
        path: jax.ShapeDtypeStruct(
            variable.shape,
            jnp.float32 if keys.matches_any(path, _FLOAT32) else dtype,
            sharding=place(path, tuple(variable.shape)),
        )
        for path, variable in parameters(model).items()
    }
    if isinstance(checkpoint, OrbaxCheckpoint):
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore((checkpoint.path / part.name).absolute(), targets)
    else:
        with checkpoint.reader() as read:
            arrays = {path: _read_array(part, path, t, read) for path, t in targets.items()}
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, Frozen):
            variable.set_value(arrays[".".join(map(str, path))])
    return nnx.merge(graphdef, state)


def _read_array(
    part: Part, path: str, target: jax.ShapeDtypeStruct, read: Callable[[str], np.ndarray]
) -> jax.Array:
    if not part.is_stacked(path):
        return jax.device_put(read(part.key(path)).astype(target.dtype), target.sharding)
    stack = _zeros(target.shape, target.dtype, target.sharding)
    for layer in range(target.shape[0]):
        block = jax.device_put(read(part.key(path, layer)).astype(target.dtype))
        stack = _write_block(stack, block, layer)
    return stack


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@functools.partial(jax.jit, donate_argnums=0)
def _write_block(stack: jax.Array, block: jax.Array, layer: jax.typing.ArrayLike) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, block, layer, 0)


def _owns(part: Part, key: str) -> bool:
    if part.name in keys.PARTS:
        return part.name in keys.owners(key)
    return part.path(key) is not None


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
