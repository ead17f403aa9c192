"""What a checkpoint's config says, and which of it cannot be run."""

import pytest
from helpers.golden import golden_checkpoint

from justdubit_jax.errors import InputError
from justdubit_jax.models.transformer_config import TransformerConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_type", "interleaved"),
        ("frequencies_precision", "float32"),
        ("cross_attention_dim", 41),
    ],
)
def test_unsupported_checkpoints_are_refused_by_key(key, value):
    config = golden_checkpoint("transformer_19b").config
    changed = {"transformer": {**config["transformer"], key: value}}
    with pytest.raises(InputError, match=f"transformer.{key}"):
        TransformerConfig.from_metadata(changed)
