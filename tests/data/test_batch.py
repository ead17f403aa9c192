"""A batch and its micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from justdubit_jax.data.batch import Batch, StreamTokens


def batch(size: int, with_mask: bool = True) -> Batch:
    def numbers(*shape: int) -> jax.Array:
        return jnp.arange(size * np.prod(shape, dtype=int), dtype=jnp.float32).reshape(size, *shape)

    video = StreamTokens(numbers(6, 4), numbers(5, 4), numbers(3, 11, 2), numbers(7, 8))
    audio = StreamTokens(numbers(2, 3), numbers(2, 3), numbers(1, 4, 2), numbers(7, 9))
    return Batch(video, audio, numbers(6) if with_mask else None)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_micro_batches_are_the_samples_in_their_order(count, with_mask):
    whole = batch(4, with_mask)
    parts = whole.in_micro_batches(count)
    assert parts.parts == count and (parts.face_mask is None) == (not with_mask)
    for want, got in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert got.shape == (count, 4 // count, *want.shape[1:])
        np.testing.assert_array_equal(np.concatenate(got), want)
    first = Batch(*jax.tree.map(lambda x: x[0], parts))
    assert first.size == 4 // count


def test_unequal_micro_batches_are_refused():
    with pytest.raises(ValueError, match="4 samples are not 3 equal micro-batches"):
        batch(4).in_micro_batches(3)
