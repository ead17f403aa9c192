"""Attention as a GPU takes it: even lengths, and operands divided alike over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from justdubit_jax.devices import sharding
from justdubit_jax.models.attention import (
    _cudnn_attention,
    at_even_lengths,
    attention,
    xla_attention,
)


def operands(tokens, keys, batch=2):
    sizes = tokens, keys, keys, tokens
    return [jax.random.normal(jax.random.key(i), (batch, n, 3, 16)) for i, n in enumerate(sizes)]


def result_and_gradients(attend, q, k, v, weight, kv_len):
    def loss(q, k, v):
        out = attend(q, k, v, kv_len)
        return (out * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


@pytest.mark.parametrize("lengths", [None, (5, 8), (9, 1)])
@pytest.mark.parametrize(("tokens", "keys"), [(7, 9), (8, 9), (7, 10), (8, 10)])
def test_padding_to_even_lengths_changes_neither_result_nor_gradient(tokens, keys, lengths):
    *qkv, weight = operands(tokens, keys)
    kv_len = None if lengths is None else jnp.array(lengths, jnp.int32)
    shapes = []

    def recorded(q, k, v, kv_len):
        shapes.append((q.shape[1], k.shape[1], v.shape[1]))
        return xla_attention(q, k, v, kv_len)

    def padded(q, k, v, kv_len):
        return at_even_lengths(recorded, q, k, v, kv_len)

    got = result_and_gradients(padded, *qkv, weight, kv_len)
    want = result_and_gradients(xla_attention, *qkv, weight, kv_len)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-6)  # sums of ten numbers near 1 in float32
    assert set(shapes) == {(tokens + tokens % 2, keys + keys % 2, keys + keys % 2)}


@pytest.fixture
def like_a_gpu(monkeypatch):
    """JAX's own checks of cuDNN's attention, as an H100 with cuDNN 9.10 would answer them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda c: float(c) <= 9.0)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda c: c == "9.0")


@pytest.mark.parametrize(("tokens", "keys"), [(3520, 121), (121, 3520), (121, 121), (6897, 257)])
def test_the_gradient_passes_jaxs_checks_of_cudnn(like_a_gpu, tokens, keys):
    """The shapes of the default configuration, and of one whose lengths are all odd."""
    q, k = (jax.ShapeDtypeStruct((1, n, 32, 64), jnp.bfloat16) for n in (tokens, keys))

    def loss(attend):
        return jax.grad(lambda q, k, v: attend(q, k, v).sum(dtype=jnp.float32), argnums=(0, 1, 2))

    with pytest.raises(NotImplementedError, match="Unsupported sequence length"):
        unpadded = lambda q, k, v: _cudnn_attention(q, k, v, None)  # noqa: E731
        jax.eval_shape(loss(unpadded), q, k, k)
    text = str(jax.make_jaxpr(loss(attention))(q, k, k))
    assert "dot_product_attention_fwd" in text and "dot_product_attention_bwd" in text


def test_operands_are_divided_alike_and_the_numbers_stay():
    """Keys that are whole on every device, as XLA leaves the text's, come divided to `attend`."""
    mesh = sharding.make_mesh(2, 4)
    *qkv, weight = operands(6, 5, batch=8)
    seen = []

    def recorded(q, k, v, kv_len):
        for x in (q, k, v):
            jax.debug.inspect_array_sharding(x, callback=seen.append)
        return xla_attention(q, k, v, kv_len)

    execution = sharding.execution(mesh, attend=recorded)
    want = result_and_gradients(xla_attention, *qkv, weight, None)
    query, *others = qkv
    placed = (
        jax.device_put(query, sharding.batch(mesh)),
        *(jax.device_put(x, sharding.replicated(mesh)) for x in (*others, weight)),
    )
    got = result_and_gradients(execution.attention, *placed, None)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-6)
    assert seen and all(place.is_equivalent_to(sharding.batch(mesh), 4) for place in seen)
    assert got[0].sharding.is_equivalent_to(sharding.batch(mesh), 4)
    assert sharding.execution(sharding.make_mesh(1, 1)).by_sample is None
