"""Checkpoints into models: strict, lazy, one tensor at a time.

Nothing is skipped in silence: missing, unexpected and mis-shaped tensors of a part are gathered and
raised once.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
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
from justdubit_jax.weights.arrays import Target
from justdubit_jax.weights.checkpoint import Checkpoint, OrbaxCheckpoint, Shapes, some_of
from justdubit_jax.weights.keys import Part

Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

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

    `dtype` None keeps the file's. `shardings(path, shape)` places every array, by default on
    the default device; each process reads its own slices, one block at a time. With `scheme` the
    linears of a Transformer's blocks are stored so (models/quant.py), and never whole in `dtype`.
    Variables that are not base weights (LoRA) stay as they are. Raises InputError naming every
    mismatch.
    """
    if mismatch := compare(part, model, checkpoint.shapes):
        where = checkpoint.path if isinstance(checkpoint, OrbaxCheckpoint) else checkpoint.paths[0]
        raise InputError(f"{where}: {part.name} does not fit: {mismatch}")
    stored = model if scheme is None else quant.quantize(model, scheme)
    targets = _targets(part, model, stored, dtype, shardings, scheme)
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
    """`load` without a checkpoint: random base weights, made on the devices block by block.

    For measurements at full size: activations stay finite, and nothing else is meant by them.
    """
    stored = model if scheme is None else quant.quantize(model, scheme)
    targets = _targets(part, model, stored, dtype, shardings, scheme)
    order = {path: i for i, path in enumerate(targets)}

    def block(path: str, layer: int | None) -> jax.Array:
        block_key = jax.random.fold_in(jax.random.fold_in(key, order[path]), layer or 0)
        return arrays.drawn(targets[path], path, block_key)

    return _with_arrays(stored, arrays.fill(targets, block))


def _targets(
    part: Part,
    model: nnx.Module,
    stored: nnx.Module,
    dtype: DTypeLike | None,
    shardings: Shardings | None,
    scheme: Scheme | None,
) -> dict[str, Target]:
    """What becomes of each parameter of `model` in `stored`, its copy that may be quantized."""
    default = jnp.zeros(()).sharding  # on jax.default_device
    place = shardings or (lambda path, shape: default)
    names = parameters(stored)
    targets = {}
    for path, variable in parameters(model).items():
        plain = path in names
        own = (path,) if plain else (f"{path}.values", f"{path}.scales")
        small_table = dtype is not None and keys.matches_any(path, _FLOAT32)
        targets[path] = Target(
            shape=tuple(variable.shape),
            stacked=part.is_stacked(path),
            # Encoded from the file's numbers, not from rounded ones.
            dtype=(jnp.float32 if small_table else dtype) if plain else None,
            # Read as the bytes will lie, since a row is encoded by itself.
            sharding=place(own[0], tuple(variable.shape)),
            scheme=None if plain else scheme,
            places={name: place(name, tuple(names[name].shape)) for name in own},
        )
    return targets


def _with_arrays[Model: nnx.Module](model: Model, values: Mapping[str, Any]) -> Model:
    model = nnx.clone(model)  # variables are shared otherwise: a second load would change both
    for path, variable in parameters(model).items():
        variable.set_value(values[path])
    return model


def abstract_weights[Model: nnx.Module](
    model: Model, dtype: DTypeLike, shardings: Shardings, scheme: Scheme | None
) -> Model:
    """What `load` will make of an abstract model: shapes, types and shardings."""
    stored = model if scheme is None else quant.quantize(model, scheme)
    plain = parameters(model)
    values = {}
    for path, variable in parameters(stored).items():
        shape, own = tuple(variable.shape), variable.get_value().dtype
        if path in plain:
            own = jnp.float32 if keys.matches_any(path, _FLOAT32) else dtype
        values[path] = jax.ShapeDtypeStruct(shape, own, sharding=shardings(path, shape))
    return _with_arrays(stored, values)


def _restore(folder: Path, targets: Mapping[str, Target]) -> dict[str, jax.Array]:
    """Plain arrays at once; those to be quantized one after the other, to hold one stack."""
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
        for path in [path for path in targets if path not in plain]:  # as every process does it
            target = targets[path]
            values |= arrays.fill_one(  # no name for the stack: it goes before the next one comes
                target, functools.partial(arrays.from_stack, target, restore({path})[path])
            )
    return values


def _owns(part: Part, key: str) -> bool:
    if part.name in keys.PARTS:
        return part.name in keys.owners(key)
    return part.path(key) is not None
