"""A model's arrays, made where they belong and in the form in which they are stored.

Stacked arrays are filled block by block, and quantized ones encoded on the way, so that beside the
result there is one block on the devices and each process's part of one block on the host.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from justdubit_jax.models import quant

Index = tuple[slice, ...]


@runtime_checkable  # for the tests' run-time checks of annotations
class Shardings(Protocol):
    """Where an array of this shape lies, as devices.sharding.weight says for a mesh.

    `stacked` is true of an array with a leading block axis, `whole_rows` of one whose last axis is
    not to be cut.
    """

    def __call__(
        self, shape: tuple[int, ...], *, stacked: bool, whole_rows: bool = False
    ) -> Sharding: ...


class Target(NamedTuple):
    """What one parameter becomes.

    `shape` and `sharding` are those of the parameter as it is read, `places` the shardings of what
    is stored, by its name: the parameter itself, or the bytes and the scales of `scheme`. dtype
    None keeps the source's.
    """

    shape: tuple[int, ...]
    stacked: bool
    dtype: DTypeLike | None
    sharding: Sharding
    scheme: quant.Scheme | None
    places: dict[str, Sharding]

    @classmethod
    def plain(
        cls,
        path: str,
        shape: tuple[int, ...],
        dtype: DTypeLike | None,
        place: Shardings,
        stacked: bool,
    ) -> "Target":
        """A parameter that is stored as it is read."""
        sharding = place(shape, stacked=stacked)
        return cls(shape, stacked, dtype, sharding, None, {path: sharding})

    @classmethod
    def quantized(cls, path: str, weight: quant.Quantized, place: Shardings) -> "Target":
        """A stacked weight that is stored as bytes and scales.

        Each row is encoded by itself, so the weight is read where its bytes will lie. It is read in
        the source's dtype, since bytes of rounded numbers would be less exact.
        """
        rows = functools.partial(place, stacked=True, whole_rows=True)
        places = {f"{path}.{name}": rows(leaf.shape) for name, leaf in weight.stored.items()}
        return cls(weight.shape, True, None, rows(weight.shape), weight.scheme, places)

    @property
    def block(self) -> tuple[tuple[int, ...], Sharding]:
        """Shape and sharding of one block, or of the whole where there are no blocks."""
        if not self.stacked:
            return self.shape, self.sharding
        if not isinstance(self.sharding, NamedSharding):
            return self.shape[1:], self.sharding
        spec = PartitionSpec(*self.sharding.spec[1:])
        return self.shape[1:], NamedSharding(self.sharding.mesh, spec)


def fill(
    targets: Mapping[str, Target], block: Callable[[str, int | None], jax.Array]
) -> dict[str, jax.Array]:
    """All stored arrays by name.

    `block(path, layer)` makes one block of a stack, or with layer None an array without blocks.
    """
    values = {}
    for path, target in targets.items():
        values |= fill_one(target, functools.partial(block, path))
    return values


def fill_one(target: Target, block: Callable[[int | None], jax.Array]) -> dict[str, jax.Array]:
    """The stored arrays of one target by name; `block` is that of `fill` without the path."""
    if not target.stacked:
        return dict.fromkeys(target.places, block(None))
    start, write = _stack_functions(target.scheme, tuple(target.places.values()))
    stacks = None
    for layer in range(target.shape[0]):
        array = block(layer)
        if stacks is None:
            stacks = start(target.shape[0], array.shape, array.dtype)
        stacks = write(stacks, array, layer)
    assert stacks is not None, f"{target} has no blocks"
    return dict(zip(target.places, stacks, strict=True))


@functools.cache
def _stack_functions(scheme: quant.Scheme | None, places: tuple[Sharding, ...]) -> tuple[Any, Any]:
    """start(layers, shape, dtype) and write(stacks, block, layer), which updates them in place."""

    def stored(block: jax.Array) -> tuple[jax.Array, ...]:
        return (block,) if scheme is None else quant.encode(block, scheme)

    def start(layers: int, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
        leaves = jax.eval_shape(stored, jax.ShapeDtypeStruct(shape, dtype))
        return tuple(jnp.zeros((layers, *leaf.shape), leaf.dtype) for leaf in leaves)

    def write(stacks: Any, block: jax.Array, layer: Any) -> tuple[jax.Array, ...]:
        return tuple(
            jax.lax.dynamic_update_index_in_dim(stack, leaf, layer, 0)
            for stack, leaf in zip(stacks, stored(block), strict=True)
        )

    return (
        jax.jit(start, static_argnums=(0, 1, 2), out_shardings=places),
        jax.jit(write, donate_argnums=0, out_shardings=places),
    )


def from_slices(target: Target, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """A block of the target; each process reads what its devices hold, every slice once."""
    shape, sharding = target.block

    @functools.cache
    def piece(index: Index) -> np.ndarray:
        tensor = read(index)
        return tensor.astype(target.dtype or tensor.dtype, copy=False)

    return jax.make_array_from_callback(shape, sharding, piece)


def from_stack(target: Target, stack: jax.Array, layer: int | None) -> jax.Array:
    """Block `layer` of the target's stack. An array without blocks (None) is returned as it is."""
    if layer is None:
        return stack
    return _pick(target.block[1])(stack, layer)


@functools.cache
def _pick(sharding: Sharding) -> Any:
    return jax.jit(lambda stack, layer: stack[layer], out_shardings=sharding)


def drawn(target: Target, path: str, key: jax.Array) -> jax.Array:
    """A random block of the target: norms 1, biases 0, all else normal with deviation 0.02.

    So the activations of a deep model stay of order one.
    """
    shape, sharding = target.block
    kind = "norm" if path.endswith("norm.weight") else path.rpartition(".")[2]
    return _draw(kind, shape, target.dtype or jnp.float32, sharding)(key)


@functools.cache
def _draw(kind: str, shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Any:
    def draw(key: jax.Array) -> jax.Array:
        if kind in ("norm", "bias"):
            return jnp.full(shape, kind == "norm", dtype)
        return (0.02 * jax.random.normal(key, shape)).astype(dtype)

    return jax.jit(draw, out_shardings=sharding)
