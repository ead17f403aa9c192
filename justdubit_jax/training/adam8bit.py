"""Adam with moments of a byte each: codes in blocks along the last axis, a float32 scale a block.

A value is scale * (code / top) ** power, and the scale is the block's largest magnitude. The power
draws the codes towards zero, so that small moments beside one large do not vanish: a first moment
keeps 5e-7 of the largest, the root of a second 1.5e-5. The first goes further down, so that one
rounded up makes no long step.

Rounding is stochastic and keeps the mean. To the nearest code, a slow average would stand still: a
step takes a thousandth off the second moment, less than half a code. Always up, it would climb to
the largest gradient of the block and stay (denominators 3 to 4 times too large on noise).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

_BLOCK = 256  # values to a scale, at most


class Code(NamedTuple):
    """How a byte stands for a share of its block's scale."""

    dtype: jax.typing.DTypeLike
    top: int
    power: int


FIRST = Code(jnp.int8, 127, 3)
SECOND = Code(jnp.uint8, 255, 4)


class Moment(NamedTuple):
    """A moment by parameter path: codes [..., n] of the parameter's shape, scales [..., blocks]."""

    codes: dict[str, jax.Array]
    scales: dict[str, jax.Array]


class Coded(NamedTuple):
    """The moment of one parameter: what `encode` returns and `decode` takes."""

    codes: jax.Array
    scales: jax.Array


class Update(NamedTuple):
    """One parameter's gradient with its moments, or the step that they make of it."""

    value: jax.Array
    first: Coded
    second: Coded


class Adam8bitState(NamedTuple):
    """Updates made, and both moments without bias correction."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so too)
    first: Moment
    second: Moment


def block_size(n: int) -> int:
    """Values to a scale along an axis of n: the largest divisor that is no larger than 256."""
    return next(size for size in range(min(n, _BLOCK), 0, -1) if n % size == 0)


def encode(
    code: Code, values: Float[Array, "*s n"], draw: Float[Array, "*s n"]
) -> tuple[Integer[Array, "*s n"], Float[Array, "*s k"]]:
    """Codes and scales; `draw`, uniform in [0, 1), decides between the two codes around a value."""
    blocks = values.reshape(*values.shape[:-1], -1, block_size(values.shape[-1]))
    scales = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scales > 0, scales, 1)[..., None]
    below = jnp.floor(code.top * share ** (1 / code.power))
    low, high = ((c / code.top) ** code.power for c in (below, below + 1))
    rounded = below + (draw.reshape(blocks.shape) < (share - low) / (high - low))
    codes = jnp.sign(blocks) * jnp.minimum(rounded, code.top)
    return codes.reshape(values.shape).astype(code.dtype), scales


def decode(
    code: Code, codes: Integer[Array, "*s n"], scales: Float[Array, "*s k"]
) -> Float[Array, "*s n"]:
    """What codes stand for, float32."""
    blocks = codes.astype(jnp.float32).reshape(*scales.shape, -1)
    values = jnp.sign(blocks) * (jnp.abs(blocks) / code.top) ** code.power * scales[..., None]
    return values.reshape(codes.shape)


def scale_by_adam8bit(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """optax.scale_by_adam of float32 parameters by path, with about a quarter of its state."""

    def empty(code: Code, params: dict[str, jax.Array]) -> Moment:
        def scales(p: jax.Array) -> jax.Array:
            return jnp.zeros((*p.shape[:-1], p.shape[-1] // block_size(p.shape[-1])))

        return Moment(
            {path: jnp.zeros(p.shape, code.dtype) for path, p in params.items()},
            {path: scales(p) for path, p in params.items()},
        )

    def init(params):
        return Adam8bitState(jnp.int32(0), empty(FIRST, params), empty(SECOND, params))

    def one(old: Update, key: jax.Array, count: jax.Array) -> Update:
        """The gradient turned into the step, and both moments moved on."""
        gradient = old.value
        first = b1 * decode(FIRST, *old.first) + (1 - b1) * gradient
        second = b2 * decode(SECOND, *old.second) + (1 - b2) * gradient**2
        # The denominator takes the code above, so what was rounded off never makes it smaller: a
        # second moment lost to rounding under a first that was not would be a step without bound.
        above = jnp.minimum(old.second.codes, SECOND.top - 1) + 1
        bound = b2 * decode(SECOND, above, old.second.scales) + (1 - b2) * gradient**2
        denominator = jnp.sqrt(bound / (1 - b2**count)) + eps
        step = first / (1 - b1**count) / denominator
        # One draw for both: their errors need not be independent.
        draw = jax.random.uniform(key, gradient.shape)
        return Update(
            value=step,
            first=Coded(*encode(FIRST, first, draw)),
            second=Coded(*encode(SECOND, second, draw)),
        )

    def in_place(stacks: Update, key: jax.Array, count: jax.Array) -> Update:
        """Block by block: at once, the decoded moments would take back what the bytes save."""

        def block(i: jax.Array, stacks: Update) -> Update:
            old = jax.tree.map(lambda stack: stack[i], stacks)
            new = one(old, jax.random.fold_in(key, i), count)
            put = jax.lax.dynamic_update_index_in_dim
            return jax.tree.map(lambda stack, x: put(stack, x, i, 0), stacks, new)

        return jax.lax.fori_loop(0, len(stacks.value), block, stacks)

    def update(updates, state, params=None):
        count: Any = optax.safe_increment(state.count)
        key = jax.random.fold_in(jax.random.key(0), count)
        steps, first, second = {}, Moment({}, {}), Moment({}, {})
        for i, (path, gradient) in enumerate(sorted(updates.items())):
            old = Update(gradient, _of(state.first, path), _of(state.second, path))
            move = in_place if gradient.ndim > 2 else one
            new = move(old, jax.random.fold_in(key, i), count)
            steps[path] = new.value
            for moment, moved in ((first, new.first), (second, new.second)):
                moment.codes[path], moment.scales[path] = moved.codes, moved.scales
        return steps, Adam8bitState(count, first, second)

    return optax.GradientTransformation(init, update)


def _of(moment: Moment, path: str) -> Coded:
    return Coded(moment.codes[path], moment.scales[path])
