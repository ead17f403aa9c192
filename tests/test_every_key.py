"""Changing a key of the config changes what a run makes: every key, so that a new one needs a line.

A key is of the training (two real steps: losses, files), of the samples (their models stood in for
by helpers/digests.py), of what a run leaves, or it changes nothing, for a reason.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import digests, toy
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import train
from justdubit_jax.devices import sharding
from justdubit_jax.lora.adapters import Weights
from justdubit_jax.runs.display import Display
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training
from justdubit_jax.validation import samples
from justdubit_jax.validation.prepare import prepare_validation
from justdubit_jax.validation.samples import SampleWriter
from justdubit_jax.validation.settings import read_validation
from justdubit_jax.weights.checkpoint import open_checkpoint

Case = tuple[str, Mapping[str, str]]  # another value, and other keys that it needs

BASE = {
    "optimization.steps": "2",
    "checkpoints.interval": "0",
    "checkpoints.precision": "float32",
    "validation.interval": "0",
    "optimization.max_grad_norm": "0.0",
}
SOFT = {"training_strategy.mask_config.use_soft_masks": "True"}
HELD_OUT = {"validation.holdout": "2", "validation.interval": "1"}

TRAINED: dict[str, Case] = {
    "model.model_path": ("other_model.safetensors", {}),
    "model.load_checkpoint": ("lora.safetensors", {}),
    "model.cross_timestep": ("other", {}),
    "lora.rank": ("4", {}),
    "lora.alpha": ("4", {}),
    "lora.dropout": ("0.5", {}),
    "lora.target_modules": ("('to_k',)", {}),
    "training_strategy.first_frame_conditioning_p": ("1.0", {}),
    "training_strategy.enable_cross_attention_masking": ("False", {}),
    "training_strategy.audio_latents_dir": ("reference_audio_latents", {}),
    "training_strategy.reference_latents_dir": ("latents", {}),
    "training_strategy.reference_audio_latents_dir": ("audio_latents", {}),
    "training_strategy.mask_config.mask_dir": ("other_masks", {}),
    "training_strategy.mask_config.use_masked_loss": ("False", {}),
    "training_strategy.mask_config.mask_loss_weight": ("0.5", {}),
    "training_strategy.mask_config.background_loss_weight": ("0.5", {}),
    "training_strategy.mask_config.mask_threshold": ("0.6", {}),
    "training_strategy.mask_config.use_soft_masks": ("True", {}),
    "optimization.learning_rate": ("0.01", {}),
    "optimization.learning_rate_groups": ("(('attn1', 0.0),)", {}),
    "optimization.steps": ("3", {}),
    "optimization.batch_size": ("2", {}),
    "optimization.gradient_accumulation_steps": ("2", {}),
    "optimization.max_grad_norm": ("0.001", {}),
    "optimization.optimizer_type": ("adamw8bit", {}),
    "optimization.first_moment_dtype": ("bfloat16", {}),
    "optimization.scheduler_type": ("constant", {}),
    "optimization.scheduler_params": ("(('end_factor', 0.5),)", {}),
    "optimization.warmup_steps": ("2", {}),
    "acceleration.mixed_precision_mode": ("bf16", {}),
    "acceleration.quantization": ("int8", {}),
    "data.preprocessed_data_root": ("other", {}),
    "validation.holdout": ("2", {"optimization.steps": "4"}),
    "flow_matching.timestep_sampling_mode": ("uniform", {}),
    "flow_matching.timestep_sampling_params": ("(('std', 2.0),)", {}),
    "seed": ("43", {}),
}
# What has to change with it.
TOGETHER = {
    "training_strategy.enable_cross_attention_masking": {
        "validation.enable_cross_attention_masking": "False"
    }
}
LEFT: dict[str, Case] = {
    "optimization.ema_decay": ("0.5", {}),
    "checkpoints.interval": ("1", {}),
    "checkpoints.keep_last_n": ("1", {"checkpoints.interval": "1"}),
    "checkpoints.keep_best": ("True", HELD_OUT),
    "checkpoints.precision": ("bfloat16", {}),
    "validation.interval": ("1", {"validation.holdout": "2"}),
    "validation.skip_initial_validation": ("True", HELD_OUT),
    "output_dir": ("elsewhere", {}),
}
SAMPLED: dict[str, Case] = {
    "model.text_encoder_path": ("other_gemma", {}),
    "validation.prompts": ("('A face says: goodbye.',)", {}),
    "validation.negative_prompt": ("silent", {}),
    "validation.images": ("('picture.png',)", {}),
    "validation.reference_videos": ("('other.mp4',)", {}),
    "validation.videos_per_prompt": ("2", {}),
    "validation.include_reference_in_output": ("True", {}),
    "validation.video_dims": ("(64, 64, 17)", {}),
    "validation.frame_rate": ("24.0", {}),
    "validation.seed": ("43", {}),
    "validation.inference_steps": ("3", {}),
    "validation.guidance_scale": ("2.0", {}),
    "validation.audio_cfg_scale": ("2.0", {}),
    "validation.video_modality_guidance_scale": ("2.0", {}),
    "validation.audio_modality_guidance_scale": ("2.0", {}),
    "validation.guidance_rescale": ("0.5", {}),
    "validation.audio_guidance_rescale": ("0.5", {}),
    "validation.generate_audio": ("False", {}),
    "validation.stg_scale": ("1.0", {}),
    "validation.stg_blocks": ("(2,)", {"validation.stg_scale": "1.0"}),
    "validation.stg_mode": ("stg_v", {"validation.stg_scale": "1.0"}),
}
NOTHING = {
    "model.training_mode": "one value",
    "training_strategy.name": "one value",
    "training_strategy.with_audio": "one value",
    "acceleration.load_text_encoder_in_8bit": "one value",
    "hub.push_to_hub": "one value",
    "hub.hub_model_id": "not read before there is an upload",
    "validation.enable_cross_attention_masking": "as the training's, or an error",
    "optimization.enable_gradient_checkpointing": "the same gradient: training/test_objective",
    "validation.batch_guidance": "the same samples: tests/sampling/test_loop",
    "mesh.data": "the same step: tests/test_train",
    "mesh.fsdp": "the same step: tests/test_train",
    "data.num_dataloader_workers": "the same order: tests/data",
    "wandb.enabled": "a service beside the run: tests/runs/test_logs",
    "wandb.project": "its name there: tests/runs/test_logs",
    "wandb.entity": "its name there: tests/runs/test_logs",
    "wandb.tags": "its name there: tests/runs/test_logs",
    "wandb.log_validation_videos": "what is sent there: tests/runs/test_logs",
}


def test_every_key_has_its_line(demo, tmp_path):
    def keys(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
        inner = [
            keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key}
            for key, value in tree.items()
        ]
        return set().union(*inner)

    tables = TRAINED, LEFT, SAMPLED, NOTHING
    assert keys(toy.config(demo, tmp_path).to_dict()) == set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.fixture(scope="module")
def files(demo, tmp_path_factory) -> Path:
    """What the keys name, and another of each."""
    folder, assets = tmp_path_factory.mktemp("keys"), demo / "assets"
    root = demo / "dataset/.precomputed"
    shutil.copytree(root, folder / "data/.precomputed")
    shutil.copytree(root, folder / "other/.precomputed")
    for path in (folder / "other/.precomputed/latents").rglob("*.safetensors"):
        change(path, path, lambda tensors: {k: -x for k, x in tensors.items()})
    for path in (root / "masks").rglob("*.safetensors"):
        to = folder / "data/.precomputed/other_masks" / path.relative_to(root / "masks")
        change(path, to, lambda tensors: {k: 1 - x for k, x in tensors.items()})
    shutil.copy(
        demo / "run/checkpoints/lora_weights_step_00060.safetensors", folder / "lora.safetensors"
    )
    shutil.copytree(assets / "gemma", folder / "other_gemma")
    change(
        assets / "gemma/model.safetensors",
        folder / "other_gemma/model.safetensors",
        lambda tensors: {k: x + x.dtype.type(0.5) for k, x in tensors.items()},
    )
    change(
        assets / "ltx-2-tiny.safetensors",
        folder / "other_model.safetensors",
        lambda t: (
            t
            | {k: -x for k, x in t.items() if k.endswith("transformer_blocks.0.attn1.to_q.weight")}
        ),
    )
    for name, number in (("clip", 0), ("other", 1)):
        shutil.copy(demo / f"dataset/clips/00{number}_reference.mp4", folder / f"{name}.mp4")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


def change(path: Path, to: Path, how: Any) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file(how(tensors), to, metadata)


def config(demo: Path, output: Path, values: Mapping[str, str]):
    return toy.config(demo, output, *(f"--config.{key}={value}" for key, value in values.items()))


@pytest.fixture(scope="module")
def kept() -> dict[Any, Any]:
    """What was made, by its keys."""
    return {}


@pytest.fixture
def trained(demo, files, kept, monkeypatch, tmp_path_factory):
    """Losses and files of two steps with other keys."""
    monkeypatch.chdir(files)

    def run(values: Mapping[str, str]) -> str:
        key = tuple(sorted((BASE | dict(values)).items()))
        if key not in kept:
            output = tmp_path_factory.mktemp("run")
            data = {"data.preprocessed_data_root": "data", "output_dir": str(output / "out")}
            chosen = config(demo, output / "out", data | BASE | dict(values))
            train.main(chosen)
            kept[key] = left_in(output if "output_dir" not in values else files / "elsewhere")
        return kept[key]

    return run


def left_in(folder: Path) -> str:
    """The names of a run's files, the LoRA's numbers, what was logged of losses and rates."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    names += sorted(str(path.relative_to(folder)) for path in folder.rglob("best.json"))
    tensors = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    lines = []
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            lines.append({k: v for k, v in said.items() if k not in ("seconds", "time", "tflops")})
    return digests.of(json.dumps([names, lines], sort_keys=True), tensors)


@pytest.mark.keys
@pytest.mark.deep
@pytest.mark.parametrize("key", TRAINED | LEFT)
def test_another_value_trains_or_leaves_something_else(trained, key):
    value, others = (TRAINED | LEFT)[key]
    changed = {**others, **TOGETHER.get(key, {}), key: value}
    assert trained(changed) != trained(others)
    jax.clear_caches()  # some forty compiled steps


@pytest.mark.keys
@pytest.mark.deep
def test_the_same_values_train_the_same(trained, kept):
    first = trained({})
    kept.clear()
    assert trained({}) == first


SAMPLING = {
    "model.text_encoder_path": "gemma",
    "validation.interval": "1",
    "validation.prompts": "('A face says: hello.',)",
    "validation.reference_videos": "('clip.mp4',)",
    "validation.stg_blocks": "(1,)",
}


@pytest.fixture
def sampled(demo, files, kept, monkeypatch, tmp_path_factory):
    """The samples that validation writes with other keys."""
    digests.install(monkeypatch, samples)
    monkeypatch.chdir(files)
    gemma = files / "gemma"
    if not gemma.exists():
        gemma.symlink_to(demo / "assets/gemma")

    def run(values: Mapping[str, str]) -> str:
        key = ("sampled", *sorted(values.items()))
        if key not in kept:
            output = tmp_path_factory.mktemp("sampled")
            chosen = config(demo, output, SAMPLING | dict(values))
            run, v = settings.read(chosen), read_validation(chosen)
            source = open_checkpoint(run.model_path)
            training = prepare_training(run, source.config, sharding.make_mesh(1, 1))
            display = Display(Console(quiet=True), run.steps)
            prepared = prepare_validation(run, v, source)
            writer = SampleWriter(training, v, source, prepared, display, [])
            written = writer.write(0, Weights({}, {}))
            kept[key] = digests.of([(path.name, digests.of_file(path)) for path in written])
            assert written
        return kept[key]

    return run


# These two encode anew; that they are looked at, test_end_to_end.py sees too.
ENCODED = "validation.images", "model.text_encoder_path"


@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=pytest.mark.deep) if k in ENCODED else k for k in SAMPLED]
)
def test_another_value_samples_something_else(sampled, key):
    value, others = SAMPLED[key]
    assert sampled({**others, key: value}) != sampled(others)
