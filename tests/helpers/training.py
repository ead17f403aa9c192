"""The golden training: its settings, batch, noise and first adapters."""

from pathlib import Path

import jax.numpy as jnp
from helpers.golden import load_golden
from safetensors.numpy import save_file

from justdubit_jax.data.batch import Batch, StreamTokens
from justdubit_jax.lora import files as lora_files
from justdubit_jax.training.objective import Draw, MaskLoss, Objective, SigmaSampling

# 30 x the reference's own float32 error (gradients of step 0; the golden vectors' README).
LIMIT = 8e-5
GOLDEN, META = load_golden("train_19b")
GRID = (3, 2, 3)
TARGETS = tuple(META["target_modules"])
FACE = jnp.asarray(GOLDEN["input.face_mask"])
EVERYWHERE = jnp.ones_like(FACE)  # weighs as much as no mask, in the same compiled step
MASK = MaskLoss(
    META["mask"]["mask_loss_weight"],
    META["mask"]["background_loss_weight"],
    META["mask"]["threshold"],
    use_soft_masks=False,
)


def start(folder: Path, shapes):
    """The adapters that the golden training starts with."""
    path = folder / "start.safetensors"
    prefix = "lora_start."
    save_file({k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}, path)
    return lora_files.read_file(path, shapes)


def batch() -> Batch:
    def stream(name):
        x = {k.partition(f"input.{name}.")[2]: jnp.asarray(v) for k, v in GOLDEN.items()}
        lengths = x["context_mask"].sum(1).astype(jnp.int32)
        return StreamTokens(x["x0"], x["ref"], x["positions"], x["context"], lengths)

    return Batch(stream("video"), stream("audio"), FACE)


def draws(step: int) -> Draw:
    first = GOLDEN["input.cond_mask"][step].any(1)
    noises = (GOLDEN[f"input.{name}.noise"][step] for name in ("video", "audio"))
    return Draw(
        jnp.asarray(GOLDEN["input.sigma"][step]), *map(jnp.asarray, noises), jnp.asarray(first)
    )


def objective(cross_timestep="other", mask_loss: MaskLoss | None = MASK, **options) -> Objective:
    """The golden training's; `options` are further fields of it."""
    options = {"dtype": jnp.float32, "isolate": True, **options}
    sampling = SigmaSampling("uniform")  # never asked: the draws are the golden file's
    return Objective(sampling, 0.0, mask_loss, cross_timestep=cross_timestep, **options)
