import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from justdubit_jax.errors import InputError
from justdubit_jax.weights.checkpoint import open_checkpoint
from justdubit_jax.weights.family import unknown_family

OURS = {"transformer": {"_class_name": "AVTransformer3DModel"}}


@pytest.mark.parametrize("name", ["ltx-2-19b-dev", "ltx-2.3-22b-dev"])
def test_both_published_configs_are_ours(name):
    config = json.loads((Path(__file__).parents[1] / f"{name}.config.json").read_text())
    assert unknown_family(config, {"config": "", "model_version": "2.3.0"}) is None


@pytest.mark.parametrize(
    ("config", "metadata", "reason"),
    [
        ({"transformer": {"_class_name": "Transformer3DModel"}}, {}, "an LTX-Video .*: no sound"),
        ({"transformer": {"_class_name": "WanModel"}}, {}, "another family .*WanModel"),
        (OURS, {"gemma_source_checkpoint": "{}"}, "an LTX-2.5 .*: its text encoder is Gemma 4"),
        (OURS, {"model_version": "2.5.0"}, r"an LTX-2.5 .*\(model_version 2.5.0\)"),
        (OURS | {"vae": {"_class_name": "DiffusionVAE"}}, {}, "another video codec"),
    ],
)
def test_another_family_is_refused_by_name(tmp_path, config, metadata, reason):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.zeros(1)}, path, metadata | {"config": json.dumps(config)})
    message = f"^{path}: .*{reason}.*; expected LTX-2.0 \\(19B\\) or LTX-2.3 \\(22B\\)$"
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)
