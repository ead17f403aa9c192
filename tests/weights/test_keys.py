import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from justdubit_jax.weights import keys
from justdubit_jax.weights.load import expected
from justdubit_jax.weights.parts import TEXT_PROJECTIONS, build_part

# in_features of the text projections: Gemma 3 12B's 3840 x 49 hidden states.
TEXT_WIDTH = 188_160


@functools.cache
def full_size(name):
    """Part -> checkpoint key -> shape, at the published size, built without memory."""
    config = json.loads((Path(__file__).parents[1] / f"{name}.config.json").read_text())
    projection = {key: (0, TEXT_WIDTH) for key in TEXT_PROJECTIONS}
    return {
        name: expected(part, build_part(part, config, projection))
        for name, part in keys.PARTS.items()
    }


@pytest.mark.parametrize(
    ("name", "unused", "count", "fingerprint"),
    [
        (
            "ltx-2-19b-dev",
            {key: (128,) for key in keys.UNUSED_STATISTICS},
            4052,
            "aca7b0bbf8415e9c98360750268915fc",
        ),
        (
            "ltx-2.3-22b-dev",
            {keys.UNUSED_FOURIER_ROWS: (514, 1, 512)},
            5947,
            "f3a83ecf3995dcc4fae2d27e08ad5767",
        ),
    ],
)
def test_all_keys_and_shapes_are_the_published_ones(name, unused, count, fingerprint):
    # The fingerprint that DiffSynth-Studio publishes for the file: MD5 of the sorted list of every
    # key, and every key:shape.
    shapes = dict(unused)
    for part in full_size(name).values():
        shapes |= part
    entries = [f"{key}:{'_'.join(map(str, shape))}" for key, shape in shapes.items()]
    text = ",".join(sorted([*shapes, *entries]))
    assert len(shapes) == count
    assert hashlib.md5(text.encode()).hexdigest() == fingerprint


def test_transformer_size():
    transformer = full_size("ltx-2-19b-dev")["transformer"]
    assert len(transformer) == 3510
    assert sum(int(np.prod(shape)) for shape in transformer.values()) == 18_876_174_592


@pytest.mark.parametrize("checkpoint", ["ltx-2-19b-dev", "ltx-2.3-22b-dev"])
def test_tables_are_bijections(checkpoint):
    for name, shapes in full_size(checkpoint).items():
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
