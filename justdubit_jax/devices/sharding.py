"""The device mesh, and where every array lives on it: one rule each for weights and batches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import Attend, Execution, Remat, attention

# Arrays below this stay whole on every device: gathering them costs more than they save.
_SMALLEST_SHARDED = 2**18


def make_mesh(data: int, fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with axes "data" and "fsdp"; data = -1 takes all devices that fsdp leaves.

    `devices` are by default all that there are. Raises InputError if there are fewer. Axis types
    are Auto: XLA propagates the shardings of the arguments (jax.make_mesh's default, Explicit,
    refuses contractions over a sharded axis).
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1:
        data = count // fsdp
    if data < 1 or data * fsdp > count:
        raise InputError(f"{data} x {fsdp} devices do not fit in the {count} that there are")
    types = (AxisType.Auto,) * 2
    chosen = devices[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Samples over all devices: those that share one copy of the weights hold different ones."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def micro_batches(mesh: Mesh) -> NamedSharding:
    """The same behind a leading axis of micro-batches, which follow one another in time."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def place_whole(tree: Any, places: Any) -> Any:
    """Host arrays, whole on every process, as arrays with these shardings."""
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, lambda index: x[index]),
        tree,
        places,
    )


def gather(mesh: Mesh) -> Callable[[Any], Any] | None:
    """From one block's weights as they are stored to the whole block on every device.

    It runs inside the scan over the blocks, so that one block is gathered at a time, in the
    backward pass again. None where every device has all weights.
    """
    if mesh.shape["fsdp"] == 1:
        return None

    def whole(weights: Any) -> Any:
        # Behind the barrier, so that what a collective wants of an array's layout is wanted of one
        # block: XLA otherwise copies the whole stack into that layout ahead of the loop.
        sliced = jax.lax.optimization_barrier(weights)
        return jax.lax.with_sharding_constraint(sliced, replicated(mesh))

    return whole


def by_sample(mesh: Mesh) -> Callable[[jax.Array], jax.Array] | None:
    """Divides an array along its leading axis, the samples, like a batch; None on one device."""
    if mesh.size == 1:
        return None
    return lambda x: jax.lax.with_sharding_constraint(x, batch(mesh))


def execution(mesh: Mesh, remat: Remat = "none", attend: Attend = attention) -> Execution:
    """How a transformer runs whose weights and samples lie on this mesh."""
    return Execution(remat, gather(mesh), by_sample(mesh), attend)


def weight(
    mesh: Mesh, shape: tuple[int, ...], *, stacked: bool, whole_rows: bool = False
) -> NamedSharding:
    """A weight, adapter or moment: its first divisible axis over "fsdp".

    The first, so output channels: they are contiguous on disk, quantized bytes lie beside their
    scales, and a gathered block has the layout that its parts have. `stacked` is true of an array
    with a leading block axis, which is never cut: a loop over the blocks takes one at a time. With
    `whole_rows`, for quantized bytes and their scales, the last axis is not cut either.
    """
    shards = mesh.shape["fsdp"]
    axes = range(int(stacked), len(shape) - int(whole_rows))
    divisible = [axis for axis in axes if shape[axis] % shards == 0]
    if shards == 1 or not divisible or np.prod(shape) < _SMALLEST_SHARDED:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * divisible[0], "fsdp"))


def shortened(place: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """`place` for an array with shorter axes: whole along those that its mesh does not divide."""
    axes = zip(place.spec, shape, strict=False)
    kept = [name if name and n % place.mesh.shape[name] == 0 else None for name, n in axes]
    return NamedSharding(place.mesh, PartitionSpec(*kept))
