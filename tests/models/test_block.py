"""The equation of one block, piece by piece; the golden blocks are in test_transformer.py."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from justdubit_jax.models.attention import Attention, AttentionConfig
from justdubit_jax.models.block import cross_attention


def test_isolated_tokens_take_no_part_in_the_attention_between_modalities():
    attn = Attention(8, 6, AttentionConfig(2, 4))
    for i, (_, weight) in enumerate(nnx.to_flat_state(nnx.state(attn))):
        weight.set_value(jax.random.normal(jax.random.key(i), weight.shape))
    key = jax.random.key(0)
    x, context = jax.random.normal(key, (1, 7, 8)), jax.random.normal(key, (1, 5, 6))
    angles = jnp.zeros((1, 7, 2, 2)), jnp.zeros((1, 5, 2, 2))
    sides = [
        ((jnp.cos(angle), jnp.sin(angle)), skip) for angle, skip in zip(angles, (3, 2), strict=True)
    ]
    out = cross_attention(attn, x, context, *sides)
    np.testing.assert_array_equal(out[:, :3], jnp.broadcast_to(attn.to_out[0].bias[...], (1, 3, 8)))
    gradient = jax.grad(lambda c: jnp.sum(cross_attention(attn, x, c, *sides) ** 2))(context)
    assert (gradient[:, :2] == 0).all() and (gradient[:, 2:] != 0).any()
