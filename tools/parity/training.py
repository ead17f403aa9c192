"""The golden training: losses, gradients and parameters of three steps."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parity.golden import Golden, Tensors, context_len, lengths, load_transformer, read, references

from justdubit_jax.data.batch import Batch, StreamTokens
from justdubit_jax.errors import InputError
from justdubit_jax.files import save_safetensors
from justdubit_jax.lora import adapters as lora
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.dialects import PEFT
from justdubit_jax.models.transformer_config import CrossTimestep
from justdubit_jax.training.objective import Draw, MaskLoss, Objective, SigmaSampling
from justdubit_jax.training.optimizer import AdamW, OptimizerConfig, base_rates, make_optimizer
from justdubit_jax.training.schedules import Schedule


def training(golden: Golden, wanted: Collection[str]) -> Tensors:
    """Losses at the start, under both rules of the audio-video modulation; then the steps."""
    graphdef, shapes, frozen = lora.split(load_transformer(golden, adapted=True))
    device = jax.devices()[0]
    adapters: Any = jax.device_put(_start(golden, shapes), device)
    tx, schedule = _optimizer(golden, shapes)
    moments = jax.device_put(tx.init(adapters), device)
    evaluate, update = _make_step(golden, graphdef, tx)
    face = jnp.asarray(golden.inputs["face_mask"])
    everywhere = jnp.ones_like(face)
    draws, found = _draws(golden), {}

    for name in sorted({name.rpartition(".")[0] for name in wanted if name[:8] == "at_start"}):
        step, masked = _AT_START[name.split(".")[-1]]
        rule = "own" if "per_token_cross" in name else "other"
        mask = face if masked else everywhere
        _, (terms, _) = evaluate(adapters, frozen, draws[step], mask, rule)
        found |= {f"{name}.{term}": value for term, value in terms.items()}

    rates = [golden.meta["lr"], *dict.fromkeys(group["lr"] for group in golden.meta["lr_groups"])]
    for i, draw in enumerate(draws):
        mask = face if golden.inputs["use_face_mask"][i] else everywhere
        gradients, (terms, seen) = evaluate(adapters, frozen, draw, mask, "other")
        adapters, moments, norm = update(gradients, moments, adapters, i)
        values = {**terms, **seen, "grad_norm": norm}
        values["lr"] = np.array([schedule(rate, i) for rate in rates])
        values |= {f"grad.{key}": x for key, x in _file_tensors(gradients).items()}
        values |= {f"param.{key}": x for key, x in _file_tensors(adapters).items()}
        found |= {f"step{i}.{name}": value for name, value in values.items()}
    return found


# Losses with the first parameters: the step whose draws they use, and whether the mask weighs.
_AT_START = {
    "masked_cond": (0, True),
    "plain_cond": (0, False),
    "masked": (1, True),
    "plain": (2, False),
}


def _make_step(
    golden: Golden, graphdef: Any, tx: optax.GradientTransformationExtraArgs
) -> tuple[Any, Any]:
    """Two jitted functions: gradients, losses and predictions of a draw; the optimizer's update.

    The face mask is an argument, so that a step without one needs no compilation of its own: a mask
    of ones weighs every target alike.
    """
    inputs, mask = golden.inputs, golden.meta["mask"]
    streams = _stream(golden, "video"), _stream(golden, "audio")
    batch = Batch(*jax.tree.map(jnp.asarray, (*streams, inputs["face_mask"])))
    frame_tokens = int(inputs["cond_mask"].sum(-1).max())
    weights = mask["mask_loss_weight"], mask["background_loss_weight"], mask["threshold"]

    def loss(adapters: Any, frozen: Any, draw: Draw, face: Any, rule: CrossTimestep) -> Any:
        model: Any = lora.merge(graphdef, adapters, frozen)
        seen = {}

        def recorded(*args: Any, **options: Any) -> tuple[jax.Array, jax.Array]:
            video, audio = model(*args, **options)
            seen.update(video_prediction=video, audio_prediction=audio)
            return video, audio

        objective = Objective(
            sampling=SigmaSampling("uniform"),  # the golden file brings its own draws
            first_frame_p=0.0,
            mask_loss=MaskLoss(*weights, use_soft_masks=False),
            isolate=True,
            cross_timestep=rule,
            dtype=golden.dtype,
        )
        masked = batch._replace(face_mask=face)
        total, terms = objective.loss(recorded, masked, draw, (1, 1, frame_tokens))
        return total, (terms, seen)

    @jax.jit
    def update(gradients: Any, moments: Any, adapters: Any, step: Any) -> tuple[Any, Any, Any]:
        updates, moments = tx.update(gradients, moments, adapters, step=step)
        return optax.apply_updates(adapters, updates), moments, optax.tree.norm(gradients)

    return jax.jit(jax.grad(loss, has_aux=True), static_argnums=4), update


def _file_tensors(adapters: Any) -> Tensors:
    return lora_files.file_tensors(jax.device_get(adapters))


def _start(golden: Golden, shapes: Mapping[str, Any]) -> lora.Adapters:
    """The first adapters, `lora_start.*`, read as the LoRA file that they would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora_start.safetensors"
        save_safetensors(path, read(golden.path, "lora_start."), {})
        return lora_files.read_file(path, shapes)


def _optimizer(
    golden: Golden, shapes: Mapping[str, Any]
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    adamw, scheduler = golden.meta["optimizer"], golden.meta["scheduler"]
    factors = {name: scheduler[name] for name in ("start_factor", "end_factor")}
    config = OptimizerConfig(
        kind="adamw",
        first_moment_dtype="float32",
        learning_rate=golden.meta["lr"],
        groups=_groups(golden),
        schedule=Schedule("linear", scheduler["total_iters"], factors),
        max_grad_norm=golden.meta["clip_grad_norm"],
    )
    names = {path: PEFT.keys_of(path, leaf.shape) for path, leaf in shapes.items()}
    b1, b2 = adamw["betas"]
    settings = AdamW(b1, b2, adamw["eps"], adamw["weight_decay"])
    return make_optimizer(config, names, settings), config.schedule


def _groups(golden: Golden) -> tuple[tuple[str, float], ...]:
    return tuple((group["pattern"], group["lr"]) for group in golden.meta["lr_groups"])


def learning_rates(golden: Golden, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Base learning rates of parameters, see optim.base_rates."""
    return base_rates(names, golden.meta["lr"], _groups(golden))


def _stream(golden: Golden, name: str) -> StreamTokens:
    fields = ("x0", "ref", "positions", "context")
    target, reference, positions, context = (golden.inputs[f"{name}.{f}"] for f in fields)
    if references(golden, name) != reference.shape[1]:
        raise InputError(f"input.{name}.target: expected {reference.shape[1]} reference tokens")
    return StreamTokens(target, reference, positions, context, context_len(golden, name))


def _draws(golden: Golden) -> list[Draw]:
    """What is random in each step; a sample's first frame is given whole or not at all."""
    inputs = golden.inputs
    given = lengths(inputs["cond_mask"], "input.cond_mask")
    if len(sizes := {int(n) for n in given.flat if n}) > 1:
        raise InputError(f"input.cond_mask: got {sorted(sizes)} tokens, expected one first frame")
    noises = zip(inputs["sigma"], inputs["video.noise"], inputs["audio.noise"], given, strict=True)
    return [
        Draw(*map(jnp.asarray, (sigma, video, audio, n > 0))) for sigma, video, audio, n in noises
    ]
