import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.golden import FOLDER, golden_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.models.layers import Linear
from justdubit_jax.models.transformer import Transformer
from justdubit_jax.models.transformer_config import TransformerConfig

TARGETS = ("to_k", "to_q", "to_v", "to_out.0", "net.0.proj", "net.2")
CONFIG = TransformerConfig.from_metadata(golden_checkpoint("transformer_19b").config)
ADAPTER = FOLDER / "lora_adapter_19b.safetensors"


def shapes(config: TransformerConfig = CONFIG, rank: int = 4, targets=TARGETS):
    def build():
        model = Transformer(config)
        lora.attach(model, lora.LoRAConfig(rank, rank, 0.0, tuple(targets)))
        return model

    return lora.split(nnx.eval_shape(build))[1]


def test_19b_at_rank_128_has_the_published_keys_and_shapes():
    text = (Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text()
    tensors = lora_files.file_tensors(
        shapes(TransformerConfig.from_metadata(json.loads(text)), 128)
    )
    # Counts of PEFT's adapter on the reference's LTXModel (rank 128, the six targets).
    assert len(tensors) == 2688
    assert sum(int(np.prod(t.shape)) for t in tensors.values()) == 1_233_125_376
    block = "diffusion_model.transformer_blocks.47."
    assert tensors[block + "ff.net.0.proj.lora_B.weight"].shape == (16384, 128)
    assert tensors[block + "audio_to_video_attn.to_q.lora_A.weight"].shape == (128, 4096)
    assert tensors[block + "video_to_audio_attn.to_k.lora_A.weight"].shape == (128, 4096)


def test_file_round_trip_is_exact(tmp_path):
    adapters = lora_files.read_file(ADAPTER, shapes())
    path = tmp_path / "out.safetensors"
    lora_files.write_file(path, adapters, jnp.float32, {"rank": "4"})
    want, got = load_file(ADAPTER), load_file(path)
    assert want.keys() == got.keys()
    assert all((want[key] == got[key]).all() for key in want)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"rank": "4"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


def test_precision_of_the_file(tmp_path):
    path = tmp_path / "out.safetensors"
    lora_files.write_file(path, lora_files.read_file(ADAPTER, shapes()), jnp.bfloat16, {})
    assert {tensor.dtype for tensor in load_file(path).values()} == {jnp.dtype(jnp.bfloat16)}


def test_start_is_pefts():
    adapters = lora.init(shapes(), jax.random.key(0))
    for path, leaf in adapters.items():
        if path.endswith(".B"):
            assert (leaf == 0).all()
        else:
            bound = leaf.shape[-1] ** -0.5
            assert 0.9 * bound < np.abs(leaf).max() <= bound


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("to_x", "^'to_x' matches no module of the model"),
        ("transformer_blocks.0.attn1.to_q", "expected the same module in all blocks"),
    ],
)
def test_targets_that_do_not_fit(target, message):
    with pytest.raises(InputError, match=message):
        shapes(targets=(target,))


def test_a_target_is_a_whole_name():
    assert set(shapes(targets=("net.2",))) == {
        f"blocks.{stream}.ff.net.2.lora.{leaf}" for stream in ("video", "audio") for leaf in "AB"
    }
    # Outside the blocks too, as in PEFT.
    assert "video.proj_out.lora.A" in shapes(targets=("proj_out", "to_q"))


def broken(tmp_path: Path, change) -> Path:
    tensors = load_file(ADAPTER)
    change(tensors)
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(iter(t))), "1 missing and 0 unexpected"),
        (lambda t: t.update(other=np.zeros(2, np.float32)), "0 missing and 1 unexpected"),
        (lambda t: t.update({k: v[:2] for k, v in t.items() if "lora_A" in k}), "another rank"),
        (lambda t: t.update({k: v[:, :9] for k, v in t.items() if "_A" in k}), "other base model"),
        (lambda t: t[next(iter(t))].fill(np.nan), "not finite"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        lora_files.read_file(broken(tmp_path, change), shapes())


def test_a_folder_without_files(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}: no \*step_\*\.safetensors"):
        lora_files.newest_lora(tmp_path)


def test_a_file_says_its_rank_and_modules():
    config = lora_files.config_of(ADAPTER)
    assert (config.rank, config.alpha) == (4, 4.0)
    assert "audio_to_video_attn.to_out.0" in config.target_modules
    assert shapes(rank=config.rank, targets=config.target_modules) == shapes()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no adapters; expected a LoRA in ComfyUI form"),
        ({"diffusion_model.proj_out.alpha": np.zeros(1)}, "alpha: expected a LoRA in ComfyUI"),
        ({"lora_unet_proj_out.lora_down.weight": np.zeros((4, 8))}, "expected a LoRA in ComfyUI"),
    ],
)
def test_files_of_another_kind(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        lora_files.config_of(tmp_path / "x.safetensors")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "x.safetensors").write_text("no")
    with pytest.raises(InputError, match="not a readable LoRA"):
        lora_files.read_file(tmp_path / "x.safetensors", shapes())


def test_nothing_is_written_when_a_value_is_not_finite(tmp_path):
    adapters = lora.init(shapes(), jax.random.key(0))
    adapters["blocks.video.attn1.to_q.lora.A"] *= jnp.nan
    with pytest.raises(InputError, match="not finite"):
        lora_files.write_file(tmp_path / "x.safetensors", adapters, jnp.float32, {})
    assert not list(tmp_path.iterdir())


def test_the_update_is_scaled_by_alpha_over_rank():
    linear = Linear(3, 2, bias=False)
    linear.lora = lora.LoRA(jnp.ones((4, 3)), jnp.ones((2, 4)), scale=0.5, dropout=0.0)
    np.testing.assert_allclose(linear(jnp.ones((1, 3))), [[6.0, 6.0]])


def test_dropout_scales_what_it_keeps_and_needs_a_key():
    linear = Linear(4000, 1, bias=False)
    linear.lora = lora.LoRA(jnp.ones((1, 4000)), jnp.ones((1, 1)), scale=1.0, dropout=0.25)
    x = jnp.ones((1, 4000))
    assert linear(x)[0, 0] == 4000  # evaluation: no key, no dropout
    lora.seed_dropout(linear, jax.random.key(0))
    dropped = float(linear(x)[0, 0])
    assert dropped != 4000 and abs(dropped / 4000 - 1) < 0.05


def test_no_two_adapters_start_or_drop_alike():
    adapters = lora.init(shapes(), jax.random.key(0))
    seen: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path, leaf in adapters.items():
        if path.endswith(".A"):
            seen.setdefault(leaf.shape, []).append(np.asarray(leaf))
    assert max(map(len, seen.values())) > 1
    assert all(len({x.tobytes() for x in alike}) == len(alike) for alike in seen.values())

    two = nnx.Dict(first=Linear(400, 1, bias=False), second=Linear(400, 1, bias=False))
    for linear in two.values():
        linear.lora = lora.LoRA(jnp.ones((1, 400)), jnp.ones((1, 1)), scale=1.0, dropout=0.5)
    lora.seed_dropout(two, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 400)), jnp.float32)
    assert two.first(x) != two.second(x)


@pytest.mark.parametrize("alpha, want", [("2.5", 2.5), (None, 4)])
def test_a_file_says_its_alpha_else_it_is_the_rank(tmp_path, alpha, want):
    metadata = {} if alpha is None else {"alpha": alpha}
    path = tmp_path / "x.safetensors"
    lora_files.write_file(path, lora_files.read_file(ADAPTER, shapes()), jnp.float32, metadata)
    assert lora_files.config_of(path).alpha == want
