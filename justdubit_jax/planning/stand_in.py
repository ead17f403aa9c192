"""Something else with flash attention's memory, for plans on a machine without a GPU.

cuDNN's attention cannot be compiled without a GPU, and XLA's holds all scores. What is computed
here is meaningless.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from justdubit_jax.models.attention import ATTENTION


def flash_stand_in(q: Array, k: Array, v: Array, kv_len: Array | None = None) -> Array:
    """In the place of models.layers.attention."""
    return _stand_in(q, k, v)


@jax.custom_vjp
def _stand_in(q: Array, k: Array, v: Array) -> Array:
    return q + k.mean(1, keepdims=True) + v.mean(1, keepdims=True)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
    out = checkpoint_name(_stand_in(q, k, v), ATTENTION)
    statistics = checkpoint_name(out[..., 0].astype(jnp.float32), ATTENTION)
    return out, (q, k, v, out, statistics)


def _backward(kept: Any, d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, statistics = kept
    d_q = d_out * out * statistics[..., None].astype(q.dtype) + q
    mean = d_q.mean(1, keepdims=True)
    return d_q, k * mean, v * mean


_stand_in.defvjp(_forward, _backward)
