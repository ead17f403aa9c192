"""Gemma 3: parity with transformers, configuration files, padding, the published model's size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models.gemma import Gemma, GemmaConfig, Rope
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected, load_weights

# google/gemma-3-12b-it's config.json, as far as the text model is concerned.
PUBLISHED = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


def _encode(dtype: str):
    checkpoint = golden_checkpoint("gemma")
    config = GemmaConfig.from_folder_config(checkpoint.config)
    abstract = nnx.eval_shape(lambda: Gemma(config))
    model = load_weights(checkpoint, keys.GEMMA, abstract, jnp.dtype(dtype))
    return jax.jit(lambda ids, mask: model(ids, mask))


@pytest.fixture(scope="module")
def encode():
    return _encode("float32")


def test_every_hidden_state_matches_the_reference(encode):
    golden, _ = load_golden("gemma")
    mask = golden["input.attention_mask"]
    states = encode(golden["input.input_ids"], mask)
    assert len(states) == 8
    for i, state in enumerate(states):
        # 30 times the reference's own float32 error against float64.
        assert error(state * mask[..., None], golden[f"expect.hidden_states.{i}"]) < 3e-5


def test_padding_is_not_read(encode):
    golden, _ = load_golden("gemma")
    ids, mask = golden["input.input_ids"], golden["input.attention_mask"]
    assert (mask == 0).any()
    clean, dirty = encode(ids, mask), encode(np.where(mask, ids, 77), mask)
    real = mask.astype(bool)
    np.testing.assert_array_equal(clean[:, real], dirty[:, real])
    assert np.isfinite(dirty).all()


def test_bfloat16_stays_near_float32(encode):
    golden, _ = load_golden("gemma")
    inputs = golden["input.input_ids"], golden["input.attention_mask"]
    want, got = encode(*inputs), _encode("bfloat16")(*inputs)
    assert got.dtype == jnp.bfloat16
    difference = got.astype(jnp.float32) - want
    # A bfloat16 is good to 0.4 %; seven layers add up to about 0.8 %, in the reference too.
    assert float(jnp.sqrt((difference**2).mean() / (want**2).mean())) < 0.02


def test_published_model_has_its_tensors():
    model = nnx.eval_shape(lambda: Gemma(GemmaConfig.from_folder_config(PUBLISHED)))
    shapes = expected(keys.GEMMA, model)
    assert len(shapes) == 626
    assert sum(math.prod(shape) for shape in shapes.values()) == 11_766_034_176
    assert shapes["language_model.model.layers.47.self_attn.k_proj.weight"] == (2048, 3840)


def test_absent_keys_have_the_defaults_of_transformers():
    config = GemmaConfig.from_folder_config(PUBLISHED)
    assert (config.vocab_size, config.head_dim, config.query_pre_attn_scalar) == (262208, 256, 256)
    assert (config.local_rope, config.global_rope) == (Rope(1e4, 1.0), Rope(1e6, 8.0))
    assert [i for i, sliding in enumerate(config.sliding) if not sliding] == list(range(5, 48, 6))
    small = GemmaConfig.from_folder_config({})
    assert (small.hidden_size, small.heads, small.kv_heads, small.window) == (2304, 8, 4, 4096)
    assert len(small.sliding) == 26 and small.global_rope == Rope(1e6, 1.0)


def test_version_5_layout_means_the_same():
    text = dict(PUBLISHED["text_config"])
    del text["rope_scaling"]
    text["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 8
    text["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    config = GemmaConfig.from_folder_config({"text_config": text})
    assert config == GemmaConfig.from_folder_config(PUBLISHED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gemma2"),
        ("hidden_activation", "silu"),
        ("attn_logit_softcapping", 50.0),
        ("use_bidirectional_attention", True),
        ("attention_bias", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("layer_types", ["full_attention"]),
        ("num_key_value_heads", 3),
        ("sliding_window", None),
    ],
)
def test_unsupported_settings_are_refused(key, value):
    with pytest.raises(InputError, match=r"Gemma config\.json: .* is .*; expected "):
        GemmaConfig.from_folder_config({**PUBLISHED["text_config"], key: value})
