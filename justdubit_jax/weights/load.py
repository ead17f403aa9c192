"""Checkpoints into models: strict, lazy, one tensor at a time.

Nothing is skipped in silence: missing, unexpected and mis-shaped tensors of a part are gathered and
raised once.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike

from justdubit_jax.errors import InputError
from justdubit_jax.models import quant
from justdubit_jax.models.layers import Frozen
from justdubit_jax.models.quant import Scheme
from justdubit_jax.weights import arrays, keys
from justdubit_jax.weights.arrays import Shardings, Target
from justdubit_jax.weights.checkpoint import Checkpoint, OrbaxCheckpoint, Shapes, some_of
from justdubit_jax.weights.keys import Part

# These small tables are float32 in the published files and stay so in a bfloat16 run: they are
# added to the timestep's modulation, which is computed in float32.
_FLOAT32 = ("{}scale_shift_table",)


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
        return "; ".join(f"{len(v)} {k} ({some_of(v)})" for k, v in fields if v)


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


def load_weights[Model: nnx.Module](
    checkpoint: Checkpoint,
    part: Part,
    model: Model,
    dtype: DTypeLike | None,
    shardings: Shardings | None = None,
    scheme: Scheme | None = None,
) -> Model:
    """A copy of an abstract model with its base weights read from the checkpoint.

    `dtype` None keeps the file's. `shardings` places every array, by default on the default device;
    each process reads its own slices, one block at a time. With `scheme` the linears of the part's
    stacked blocks are stored so (models/quant.py), and never whole in `dtype`. Variables that are
    not base weights (LoRA) stay as they are. Raises InputError naming every mismatch.
    """
    if mismatch := compare(part, model, checkpoint.shapes):
        where = checkpoint.path if isinstance(checkpoint, OrbaxCheckpoint) else checkpoint.paths[0]
        raise InputError(f"{where}: {part.name} does not fit: {mismatch}")
    stored, targets = _storage(part, model, dtype, shardings, scheme)
    if isinstance(checkpoint, OrbaxCheckpoint):
        return _with_arrays(stored, _restore(checkpoint.path / part.name, targets))
    with checkpoint.reader() as read:

        def block(path: str, layer: int | None) -> jax.Array:
            return arrays.from_slices(targets[path], functools.partial(read, part.key(path, layer)))

        return _with_arrays(stored, arrays.fill(targets, block))


def random_weights[Model: nnx.Module](
    part: Part,
    model: Model,
    key: jax.Array,
    dtype: DTypeLike,
    shardings: Shardings | None = None,
    scheme: Scheme | None = None,
) -> Model:
    """`load_weights` without a checkpoint: random base weights, made on the devices block by block.

    For measurements at full size: activations stay finite, and nothing else is meant by them.
    """
    stored, targets = _storage(part, model, dtype, shardings, scheme)
    order = {path: i for i, path in enumerate(targets)}

    def block(path: str, layer: int | None) -> jax.Array:
        block_key = jax.random.fold_in(jax.random.fold_in(key, order[path]), layer or 0)
        return arrays.drawn(targets[path], path, block_key)

    return _with_arrays(stored, arrays.fill(targets, block))


def abstract_weights[Model: nnx.Module](
    part: Part,
    model: Model,
    dtype: DTypeLike,
    shardings: Shardings | None = None,
    scheme: Scheme | None = None,
) -> Model:
    """What `load_weights` will make of an abstract model: shapes, types and shardings."""
    stored, targets = _storage(part, model, dtype, shardings, scheme)
    variables, values = parameters(stored), {}
    for target in targets.values():
        for name, sharding in target.places.items():
            shape = tuple(variables[name].shape)
            own = target.dtype or variables[name].get_value().dtype  # bytes and scales have theirs
            values[name] = jax.ShapeDtypeStruct(shape, own, sharding=sharding)
    return _with_arrays(stored, values)


def _storage[Model: nnx.Module](
    part: Part,
    model: Model,
    dtype: DTypeLike | None,
    shardings: Shardings | None,
    scheme: Scheme | None,
) -> tuple[Model, dict[str, Target]]:
    """An abstract model as it will be stored, and what becomes of each parameter by its path."""
    stored = model if scheme is None else quant.quantize(model, scheme, part.is_stacked)
    quantized = quant.quantized_weights(stored)
    place = shardings or _on_default_device
    targets = {}
    for path, variable in parameters(model).items():
        if path in quantized:
            targets[path] = Target.quantized(path, quantized[path], place)
        else:
            shape, stacked = tuple(variable.shape), part.is_stacked(path)
            targets[path] = Target.plain(path, shape, _dtype(path, dtype), place, stacked)
    return stored, targets


def _on_default_device(
    shape: tuple[int, ...], *, stacked: bool, whole_rows: bool = False
) -> jax.sharding.Sharding:
    return jnp.zeros(()).sharding  # that of jax.default_device


def _dtype(path: str, dtype: DTypeLike | None) -> DTypeLike | None:
    """The dtype of a parameter in a model of this dtype; None keeps the file's."""
    small_table = dtype is not None and keys.matches_any(path, _FLOAT32)
    return jnp.float32 if small_table else dtype


def _with_arrays[Model: nnx.Module](model: Model, values: Mapping[str, Any]) -> Model:
    model = nnx.clone(model)  # variables are shared otherwise: a second load would change both
    for path, variable in parameters(model).items():
        variable.set_value(values[path])
    return model


def _restore(folder: Path, targets: Mapping[str, Target]) -> dict[str, jax.Array]:
    """The stored arrays by name, from the folder of a part.

    Plain arrays are read together. Those to be quantized are read one after the other, so that no
    more than one is held as it was before.
    """
    plain = {path for path, target in targets.items() if target.scheme is None}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved: Any = checkpointer.metadata(folder.absolute()).item_metadata

        def restore(paths: Collection[str]) -> dict[str, jax.Array]:
            like = {
                path: jax.ShapeDtypeStruct(
                    targets[path].shape,
                    targets[path].dtype or saved[path].dtype,
                    sharding=targets[path].sharding,
                )
                for path in paths
            }
            arguments = ocp.args.PyTreeRestore(
                item=like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            return checkpointer.restore(folder.absolute(), args=arguments)

        values = restore(plain)
        # One after the other in the same order, as all processes of a run must restore them.
        for path, target in targets.items():
            if path not in plain:
                # Only this call refers to the stack, so its memory is free for the next one.
                values |= arrays.fill_one(
                    target, functools.partial(arrays.from_stack, target, restore({path})[path])
                )
    return values


def _owns(part: Part, key: str) -> bool:
    if part.name in keys.PARTS:
        return part.name in keys.owners(key)
    return part.path(key) is not None
