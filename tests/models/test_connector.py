"""Connectors: parity with the reference, samples of a batch on their own, refused settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import error, golden_checkpoint, load_golden

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import AttentionConfig
from justdubit_jax.models.connector import ConnectorConfig, Connectors, Tower
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected
from justdubit_jax.weights.parts import load_part

# The connectors' part of the 19B checkpoint's configuration.
PUBLISHED = {
    "connector_attention_head_dim": 128,
    "connector_num_attention_heads": 30,
    "connector_num_layers": 2,
    "connector_positional_embedding_max_pos": [4096],
    "rope_type": "split",
    "frequencies_precision": "float64",
}
TEXT_WIDTH = 3840 * 49


def connectors(file):
    checkpoint = golden_checkpoint(file)
    model = load_part(checkpoint, keys.CONNECTORS, jnp.float32)
    return jax.jit(lambda hidden_states, mask: model(hidden_states, mask))


@pytest.fixture(scope="module")
def connect():
    return connectors("text_19b")


@pytest.fixture(scope="module")
def prompt():
    """150 tokens behind 106 places of padding: hidden states [n, b, t, d], and the mask."""
    golden, _ = load_golden("text_19b")
    hidden_states = np.moveaxis(golden["input.long.hidden_states"], -1, 0)
    return hidden_states, golden["input.long.attention_mask"]


def test_contexts_match_the_reference(connect, prompt):
    golden, _ = load_golden("text_19b")
    video, audio = connect(*prompt)
    # The golden vectors' floor for float32; the reference's own error is 4e-7.
    assert error(video, golden["expect.long.video_context"]) < 2e-5
    assert error(audio, golden["expect.long.audio_context"]) < 2e-5


def test_contexts_of_ltx_2_3_match_the_reference():
    """Features of each modality, gated connectors of its width."""
    golden, _ = load_golden("text_22b")
    hidden_states = np.moveaxis(golden["input.prompt0.hidden_states"], -1, 0)
    contexts = connectors("text_22b")(hidden_states, golden["input.prompt0.attention_mask"])
    for name, context in zip(("video", "audio"), contexts, strict=True):
        assert error(context, golden[f"expect.prompt0.{name}_context"]) < 2e-5


def test_samples_do_not_mix_and_padding_is_not_read(connect, prompt):
    hidden_states = np.repeat(prompt[0][:, :, -128:], 3, axis=1)
    mask = (np.arange(128) >= 128 - np.array([[1], [11], [128]])).astype(np.int32)
    batch = connect(np.where(mask[..., None], hidden_states, np.nan), mask)
    for i in range(3):
        alone = connect(hidden_states[:, i : i + 1], mask[i : i + 1])
        for got, want in zip(batch, alone, strict=True):
            assert error(got[i], want[0]) < 1e-5  # float32 sums in another order


def test_bfloat16_stays_near_float32(connect, prompt):
    hidden_states, mask = prompt
    for got, want in zip(
        connect(jnp.array(hidden_states, jnp.bfloat16), mask), connect(*prompt), strict=True
    ):
        assert got.dtype == jnp.bfloat16
        difference = got.astype(jnp.float32) - want
        # A bfloat16 is good to 0.4 %; the reference's own runs differ by 0.6 %.
        assert float(jnp.sqrt((difference**2).mean() / (want**2).mean())) < 0.02


def test_length_must_be_a_multiple_of_the_registers(connect, prompt):
    hidden_states, mask = prompt
    with pytest.raises(ValueError, match="130 text tokens; expected a multiple of 128"):
        connect(hidden_states[:, :, :130], mask[:, :130])


def test_published_model_has_its_tensors():
    config = ConnectorConfig.from_metadata({"transformer": PUBLISHED}, TEXT_WIDTH)
    assert config.audio == config.video == Tower(AttentionConfig(30, 128), layers=2)
    shapes = expected(keys.CONNECTORS, nnx.eval_shape(lambda: Connectors(config)))
    assert len(shapes) == 59
    total = sum(math.prod(shape) for shape in shapes.values())
    assert total == 2 * 354_470_400 + 3840 * TEXT_WIDTH


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("caption_proj_before_connector", False, "caption_proj_before_connector is False"),
        ("caption_proj_input_norm", False, "caption_proj_before_connector is None; expected True"),
        ("rope_type", "interleaved", "expected 'split'"),
        ("connector_positional_embedding_max_pos", [20, 2048], "expected one number"),
        ("audio_connector_num_attention_heads", 15, "width 1920; expected 3840"),
    ],
)
def test_unsupported_settings_are_refused(key, value, message):
    with pytest.raises(InputError, match=message):
        ConnectorConfig.from_metadata({"transformer": {**PUBLISHED, key: value}}, TEXT_WIDTH)
