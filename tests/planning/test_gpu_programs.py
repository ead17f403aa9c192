"""The run's programs compiled for an H100 that is not there, through JAX's own checks.

They are of the published widths at few blocks. Skipped without the extra cuda12 or cuda13, which
`.ci/run` installs in an environment of its own. What JAX or XLA refuses on a card raises here.
"""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from helpers.commands import REPO

from justdubit_jax import cli
from justdubit_jax.planning import memory
from justdubit_jax.planning.cards import read_card
from justdubit_jax.planning.described import OPTIONS, has_plugin
from justdubit_jax.planning.phases import Work, decode, encode, heldout, sample
from justdubit_jax.planning.rent import attention_of, mesh_of, rent
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import prepare_training
from justdubit_jax.validation.settings import read_validation

pytestmark = pytest.mark.skipif(not has_plugin(), reason="needs the extra cuda12 or cuda13")

CONFIG = Path(__file__).parents[1] / "ltx-2-19b-dev.config.json"


def work(mesh, card, layers: int, seconds: Fraction, *flags: str) -> Work:
    arguments = ["train", "--config", str(REPO / "configs/dub.py")]
    arguments += [f"--config.model.model_path={CONFIG}", *(f"--config.{flag}" for flag in flags)]
    config = cli.parse_config(arguments)
    run, metadata = settings.read(config), json.loads(CONFIG.read_text())
    metadata["transformer"]["num_layers"] = layers
    training = prepare_training(run, metadata, mesh, attention_of(card))
    frames = 8 * round(seconds * 25 / 8) + 1
    shape = memory.shape_of_size(training.config, training.layout, 640, 352, frames, Fraction(25))
    return Work(training, read_validation(config), shape, metadata, None)


STEPS = {
    # 121 audio latents, an odd number, whose attention JAX does not differentiate by itself.
    "default": (1, 1, ("optimization.enable_gradient_checkpointing=True",)),
    "everything in bytes, in parts": (
        *(1, 1),
        (
            *("acceleration.quantization=nf4", "optimization.optimizer_type=adamw8bit"),
            *("optimization.gradient_accumulation_steps=2", "optimization.batch_size=2"),
            *("lora.dropout=0.1", "optimization.ema_decay=0.99"),
            "optimization.enable_gradient_checkpointing=queries",
        ),
    ),
    "shared by eight, keys kept": (
        *(1, 8),
        ("acceleration.quantization=int8", "optimization.enable_gradient_checkpointing=keys"),
    ),
    "shared by two, twice": (
        *(2, 2),
        ("acceleration.quantization=fp8", "optimization.enable_gradient_checkpointing=attention"),
    ),
    "offload": (1, 1, ("optimization.enable_gradient_checkpointing=offload",)),
    "nothing recomputed": (1, 1, ("optimization.enable_gradient_checkpointing=False",)),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_step_compiles_for_a_card(name):
    data, fsdp, flags = STEPS[name]
    card = read_card("h100-sxm")
    layers = 1 if "in bytes" in name else 2  # 58 loops over each block's moments
    with mesh_of(card, data, fsdp) as mesh:
        w = work(mesh, card, layers, Fraction(121, 25), *flags)
        made = rent(w.training, w.shape, card)
    kinds = {share.what for share in made.estimate.by_kind()}
    assert {"attention", "attention backward", "product"} <= kinds  # cuDNN's, and cuBLAS's
    # Six attentions a block, and their gradients; of the whole program two blocks.
    attentions = [k for k in made.estimate.kernels if k.kind == "attention backward"]
    parts = w.training.run.accumulation
    assert sum(kernel.times for kernel in attentions) == 6 * layers * parts
    assert made.plan.memory.total < card.limit and made.estimate.seconds > 0.01
    assert bool(made.estimate.collectives) == (mesh.size > 1)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_the_held_out_loss_compiles_for_a_card(fsdp):
    card = read_card("h100-sxm")
    with mesh_of(card, 1, fsdp) as mesh:
        heldout(work(mesh, card, 1, Fraction(1))).compile(dict(OPTIONS))


EVERY_GUIDANCE = (
    *("validation.stg_scale=1.0", "validation.stg_blocks=(0,)"),
    *("validation.video_modality_guidance_scale=2.0", "validation.guidance_rescale=0.7"),
)


@pytest.mark.parametrize("batched, fsdp", [(True, 2), (False, 1)])
def test_sampling_compiles_for_a_card(batched, fsdp):
    card = read_card("h100-sxm")
    with mesh_of(card, 1, fsdp) as mesh:
        one = work(mesh, card, 1, Fraction(1), *EVERY_GUIDANCE)
        assert len(one.validation.guidance) == 2
        sample(one, batched).compile(dict(OPTIONS))


@pytest.mark.parametrize("phase", [encode, decode])
def test_the_video_codecs_compile_for_a_card(phase):
    card = read_card("h100-sxm")
    with mesh_of(card, 1, 1) as mesh:
        made = phase(work(mesh, card, 1, Fraction(1))).compile(dict(OPTIONS))
    assert "conv" in made.as_text()


def test_a_card_without_flash_attention_takes_xlas():
    card = read_card("v100")
    with mesh_of(card, 1, 1) as mesh:
        one = work(mesh, card, 1, Fraction(1, 5), "acceleration.mixed_precision_mode=no")
        made = heldout(one).compile(dict(OPTIONS))
    assert "fmha" not in made.as_text()
