"""Names of adapters, from our paths to those of files and parameters, and back."""

import json
from pathlib import Path

import pytest
from flax import nnx

from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora.dialects import COMFY, PEFT, blocks, is_stacked, name_in_block
from justdubit_jax.lora.files import file_tensors
from justdubit_jax.models.layers import Linear
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig

CONFIG = json.loads((Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text())
TO_Q = "blocks.video.attn1.to_q.lora.A"


@pytest.fixture(scope="module")
def every_linear():
    """Shapes of adapters on every linear of the 19B model, those outside the blocks too."""
    config = TransformerConfig.from_metadata(CONFIG)
    model = nnx.eval_shape(lambda: Transformer(config))
    paths = [
        f"{'.'.join(map(str, path))}.lora.A"
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Linear)
    ]
    targets = {name_in_block(path, 0 if is_stacked(path) else None) for path in paths}
    adapted, _ = lora.adapted_model(config, lora.LoRAConfig(4, 4, 0.0, tuple(targets)))
    shapes = lora.split(adapted)[1]
    assert {path for path in shapes if path.endswith("A")} == set(paths)
    return shapes


@pytest.mark.parametrize("dialect", [COMFY, PEFT], ids=lambda d: d.name)
def test_a_name_leads_back_to_its_array(every_linear, dialect):
    seen = set()
    for path, leaf in every_linear.items():
        for layer in blocks(path, leaf.shape):
            key = dialect.key(path, layer)
            assert dialect.path(key) == (path, layer)
            seen.add(key)
    assert len(seen) == sum(len(blocks(p, leaf.shape)) for p, leaf in every_linear.items())


def test_an_array_leads_back_to_its_name(every_linear):
    for key in file_tensors(every_linear):
        place = COMFY.path(key)
        assert place is not None and COMFY.key(*place) == key


def test_spelling():
    module = "transformer_blocks.3.attn1.to_q"
    assert COMFY.key(TO_Q, 3) == f"diffusion_model.{module}.lora_A.weight"
    assert PEFT.key(TO_Q, 3) == f"base_model.model.{module}.lora_A.default.weight"
    assert COMFY.key("video.proj_out.lora.B", None) == "diffusion_model.proj_out.lora_B.weight"
    assert COMFY.keys_of(TO_Q, (2, 4, 8)) == [COMFY.key(TO_Q, 0), COMFY.key(TO_Q, 1)]
    assert is_stacked(TO_Q) and not is_stacked("video.proj_out.lora.B")


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.transformer_blocks.3.attn1.to_q.lora_A.default.weight",
        "diffusion_model.transformer_blocks.3.attn1.to_q.lora_C.weight",
        "diffusion_model.transformer_blocks.3.attn1.to_q.lora_A.weight.more",
        "diffusion_model.transformer_blocks.3.attn1.to_q.alpha",
        "diffusion_model.lora_A.weight",
        # The connectors' tensors are named like the transformer's, and are none of it.
        "diffusion_model.video_embeddings_connector.proj.lora_A.weight",
    ],
)
def test_names_of_others_are_none(key):
    assert COMFY.path(key) is None
