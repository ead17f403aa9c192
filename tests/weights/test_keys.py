import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected
from justdubit_jax.weights.parts import build_part

CONFIG = json.loads((Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text())
# in_features of the 19B's text projection: Gemma 3 12B's 3840 x 49 hidden states.
AGGREGATE = {"text_embedding_projection.aggregate_embed.weight": (3840, 188160)}


@pytest.fixture(scope="module")
def full_size():
    """Checkpoint key -> shape of all parts at 19B, built without memory."""
    return {
        name: expected(part, build_part(part, CONFIG, AGGREGATE))
        for name, part in keys.PARTS.items()
    }


def test_19b_has_exactly_the_published_keys_and_shapes(full_size):
    # The fingerprint that DiffSynth-Studio publishes for ltx-2-19b-dev.safetensors: MD5 of the
    # sorted list of every key, and every key:shape.
    shapes = {key: (128,) for key in keys.UNUSED}
    for part in full_size.values():
        shapes |= part
    entries = [f"{key}:{'_'.join(map(str, shape))}" for key, shape in shapes.items()]
    text = ",".join(sorted([*shapes, *entries]))
    assert len(shapes) == 4052
    assert hashlib.md5(text.encode()).hexdigest() == "aca7b0bbf8415e9c98360750268915fc"


def test_transformer_size(full_size):
    transformer = full_size["transformer"]
    assert len(transformer) == 3510
    assert sum(int(np.prod(shape)) for shape in transformer.values()) == 18_876_174_592


def test_tables_are_bijections(full_size):
    for name, shapes in full_size.items():
        part = keys.PARTS[name]
        seen = set()
        for key in shapes:
            path, layer = part.path(key)
            assert part.key(path, layer) == key
            seen.add((path, layer))
        assert len(seen) == len(shapes)


def test_connectors_do_not_belong_to_the_transformer():
    key = "model.diffusion_model.video_embeddings_connector.learnable_registers"
    assert keys.owners(key) == ["connectors"]


def test_statistics_belong_to_both_halves():
    key = "vae.per_channel_statistics.mean-of-means"
    assert keys.owners(key) == ["video_encoder", "video_decoder"]


def test_unknown_keys_have_no_owner():
    assert keys.owners("lm_head.weight") == []
    assert all(keys.owners(key) == [] for key in keys.UNUSED)


def test_a_path_outside_the_table_is_an_error():
    with pytest.raises(KeyError, match=r"blocks\.smell"):
        keys.TRANSFORMER.key("blocks.smell.attn1.to_q.weight", 0)
