"""Attention as the card runs it, and its gradients, beside XLA's in float32 on the same numbers."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checks.result import Row

from justdubit_jax.models.attention import attention, xla_attention

# bfloat16 has 8 bits: results and gradients that are rounded once are off by 2e-3 of their size,
# those of which a factor was rounded too (the probabilities) by about as much again.
LIMIT = 1e-2


class Case(NamedTuple):
    """Queries, keys, heads, head size; how many keys of each sample are there."""

    queries: int
    keys: int
    heads: int
    width: int
    lengths: tuple[int, ...] | None = None

    def __str__(self) -> str:
        there = f", {' and '.join(map(str, self.lengths))} there" if self.lengths else ""
        return f"{self.queries} queries, {self.keys} keys{there}, heads of {self.width}"


CASES = (
    Case(256, 256, 4, 128),
    Case(256, 256, 4, 64),
    Case(121, 121, 4, 64),
    Case(242, 121, 4, 64),
    Case(121, 352, 4, 64),
    Case(256, 1024, 4, 128, (1024, 37)),
    Case(121, 128, 4, 64, (128, 1)),
    Case(352, 352, 2, 256),
)
# The default sample's sizes, at fewer heads: what it is compared with holds the scores.
REAL = Case(7040, 7040, 4, 128), Case(7040, 1024, 4, 128), Case(3520, 121, 4, 64)


def check(small: bool) -> Iterator[Row]:
    for case in CASES if small else CASES + REAL:
        for name, error in errors(case).items():
            yield Row(f"{case}: {name}", error, limit=LIMIT)


def errors(case: Case) -> dict[str, float]:
    """Of the result and the gradients: |got - want| / |want|, both as one vector."""
    batch = len(case.lengths) if case.lengths else 1
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = case.queries, case.keys, case.keys, case.queries
    q, k, v, seed = (
        jax.random.normal(key, (batch, n, case.heads, case.width), jnp.bfloat16)
        for key, n in zip(keys, sizes, strict=True)
    )
    lengths = None if case.lengths is None else jnp.array(case.lengths, jnp.int32)

    @jax.jit
    def ours(q, k, v, seed):
        out, back = jax.vjp(lambda q, k, v: attention(q, k, v, lengths), q, k, v)
        return out, *back(seed)

    @jax.jit
    def wanted(*given):
        q, k, v, seed = (x.astype(jnp.float32) for x in given)
        out, back = jax.vjp(lambda q, k, v: xla_attention(q, k, v, lengths), q, k, v)
        return out, *back(seed)

    names = "result", "gradient of queries", "gradient of keys", "gradient of values"
    results = zip(names, ours(q, k, v, seed), wanted(q, k, v, seed), strict=True)
    return {name: _distance(got, want) for name, got, want in results}


def _distance(got: jax.Array, want: jax.Array) -> float:
    one, other = np.asarray(got, np.float32), np.asarray(want)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
