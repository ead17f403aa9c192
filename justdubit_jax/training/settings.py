"""The configuration, checked once and turned into plain values.

What a config asks for and this version does not do ends here with the reason, before anything is
loaded or written.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from justdubit_jax.errors import InputError, about
from justdubit_jax.lora.adapters import LoRAConfig
from justdubit_jax.models.attention import Remat
from justdubit_jax.models.quant import SCHEMES, Scheme
from justdubit_jax.training import schedules
from justdubit_jax.training.objective import MaskLoss, SigmaSampling
from justdubit_jax.training.optimizer import KINDS, OptimizerConfig
from justdubit_jax.training.values import (
    at_least,
    existing,
    known_pairs,
    one_of,
    optional_path,
    pairs,
    within,
)
from justdubit_jax.validation.settings import Validation, read_validation


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run. Paths exist; numbers are in range."""

    model_path: Path
    load_checkpoint: Path | None
    cross_timestep: str
    lora: LoRAConfig
    dtype: Any
    quantization: Scheme | None  # storage of the blocks' frozen weights; None is dtype
    first_frame_p: float
    isolate: bool
    folders: Mapping[str, str]  # role -> folder below data_root
    mask_loss: MaskLoss | None
    sampling: SigmaSampling
    optimizer: OptimizerConfig
    ema_decay: float  # of a running mean of the adapters; 0 is off
    steps: int
    batch_size: int
    accumulation: int  # micro-batches a step
    remat: Remat
    mesh: tuple[int, int]
    data_root: Path | None  # None only for a dry run
    reader_threads: int
    checkpoint_interval: int
    keep_last_n: int
    export_dtype: Any
    seed: int
    keep_best: bool
    wandb: Mapping[str, Any] | None  # project, entity, tags, log_validation_videos
    validation: Validation
    output_dir: Path


def read(config: Any, dry_run: bool = False) -> Settings:
    """Check a ConfigDict with the keys of configs/dub.py. Raises InputError naming the key.

    A dry run may do without a data set.
    """
    _refuse(config)
    strategy, optimization = config.training_strategy, config.optimization
    masks = strategy.mask_config
    use_masks = masks.use_masked_loss
    folders = {
        "latents": "latents",
        "conditions": "conditions",
        "audio_latents": strategy.audio_latents_dir,
        "reference_latents": strategy.reference_latents_dir,
        "reference_audio_latents": strategy.reference_audio_latents_dir,
    }
    if use_masks:
        folders["masks"] = masks.mask_dir
    settings = Settings(
        model_path=existing(config.model.model_path, "model.model_path"),
        load_checkpoint=optional_path(config.model.load_checkpoint, "model.load_checkpoint"),
        cross_timestep=one_of(config.model, "model.cross_timestep", ("auto", "own", "other")),
        lora=LoRAConfig(
            rank=at_least(1, config.lora.rank, "lora.rank"),
            alpha=at_least(1, config.lora.alpha, "lora.alpha"),
            dropout=within(0, 1, config.lora.dropout, "lora.dropout"),
            target_modules=tuple(config.lora.target_modules),
        ),
        dtype=jnp.bfloat16 if config.acceleration.mixed_precision_mode == "bf16" else jnp.float32,
        quantization=_quantization(config.acceleration.quantization),
        first_frame_p=within(
            0,
            1,
            strategy.first_frame_conditioning_p,
            "training_strategy.first_frame_conditioning_p",
        ),
        isolate=strategy.enable_cross_attention_masking,
        folders=folders,
        mask_loss=MaskLoss(
            masks.mask_loss_weight,
            masks.background_loss_weight,
            masks.mask_threshold,
            masks.use_soft_masks,
        )
        if use_masks
        else None,
        sampling=_sampling(config.flow_matching),
        optimizer=_optimizer(optimization),
        ema_decay=_ema_decay(optimization.ema_decay),
        steps=optimization.steps,
        batch_size=at_least(1, optimization.batch_size, "optimization.batch_size"),
        accumulation=at_least(
            1, optimization.gradient_accumulation_steps, "optimization.gradient_accumulation_steps"
        ),
        remat=_remat(optimization.enable_gradient_checkpointing),
        mesh=(config.mesh.data, at_least(1, config.mesh.fsdp, "mesh.fsdp")),
        data_root=(optional_path if dry_run else existing)(
            config.data.preprocessed_data_root, "data.preprocessed_data_root"
        ),
        reader_threads=at_least(
            0, config.data.num_dataloader_workers, "data.num_dataloader_workers"
        ),
        checkpoint_interval=at_least(0, config.checkpoints.interval, "checkpoints.interval"),
        keep_last_n=at_least(-1, config.checkpoints.keep_last_n, "checkpoints.keep_last_n"),
        export_dtype=jnp.dtype(
            one_of(config.checkpoints, "checkpoints.precision", ("bfloat16", "float32"))
        ),
        seed=config.seed,
        keep_best=config.checkpoints.keep_best,
        wandb={
            "project": config.wandb.project,
            "entity": config.wandb.entity,
            "tags": tuple(config.wandb.tags),
            "log_validation_videos": config.wandb.log_validation_videos,
        }
        if config.wandb.enabled
        else None,
        validation=read_validation(config),
        output_dir=Path(config.output_dir).expanduser(),
    )
    return settings


def _refuse(config: Any) -> None:
    """Values that no version takes, and those that a later one will."""
    validation = config.validation
    never = {
        "training_strategy.name": (config.training_strategy.name != "justdubit", "is 'justdubit'"),
        "training_strategy.with_audio": (
            not config.training_strategy.with_audio,
            "is True: dubbing trains picture and voice together",
        ),
        "acceleration.mixed_precision_mode": (
            config.acceleration.mixed_precision_mode not in ("bf16", "no"),
            "is 'bf16' or 'no' (float32)",
        ),
        "model.training_mode": (
            config.model.training_mode != "lora",
            "is 'lora': 19B float32 masters with their moments do not fit one device",
        ),
        "validation.enable_cross_attention_masking": (
            validation.enable_cross_attention_masking
            != config.training_strategy.enable_cross_attention_masking,
            "must be training_strategy's: samples would show another model than the trained one",
        ),
    }
    for key, (wrong, expected) in never.items():
        if wrong:
            raise InputError(f"config: {key} {expected}")
    if config.acceleration.load_text_encoder_in_8bit:
        raise InputError(
            "config: acceleration.load_text_encoder_in_8bit is not needed: the text encoder is "
            "gone before the transformer is loaded"
        )
    not_yet = {
        "hub.push_to_hub": config.hub.push_to_hub,
    }
    for what, asked in not_yet.items():
        if asked:
            raise InputError(f"config: {what} is not supported yet")


def _remat(value: Any) -> Remat:
    names = {True: "full", False: "none", "attention": "attention", "offload": "offload"}
    if value not in names:
        raise InputError(
            f"config: optimization.enable_gradient_checkpointing is {value!r}, "
            "expected True, False, 'attention' or 'offload'"
        )
    return names[value]  # type: ignore[return-value]


def _optimizer(optimization: Any) -> OptimizerConfig:
    kind = one_of(optimization, "optimization.optimizer_type", KINDS)
    key = "optimization.first_moment_dtype"
    first_moment = one_of(optimization, key, ("float32", "bfloat16"))
    if kind == "adamw8bit" and first_moment != "float32":
        raise InputError(f"config: {key} is for adamw: adamw8bit's moments are bytes")
    key = "optimization.learning_rate_groups"
    groups = pairs(optimization.learning_rate_groups, key)
    for pattern, rate in groups:
        at_least(0, rate, key)
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"config: {key}: {pattern!r} is no regex: {error}") from None
    schedule_kind = one_of(optimization, "optimization.scheduler_type", schedules.KINDS)
    steps = at_least(1, optimization.steps, "optimization.steps")
    params = dict(pairs(optimization.scheduler_params, "optimization.scheduler_params"))
    warmup = at_least(0, optimization.warmup_steps, "optimization.warmup_steps")
    with about("config: optimization.scheduler_params"):
        schedule = schedules.Schedule(schedule_kind, steps, params, warmup)
    return OptimizerConfig(
        kind=kind,
        first_moment_dtype=first_moment,
        learning_rate=at_least(0, optimization.learning_rate, "optimization.learning_rate"),
        groups=groups,
        schedule=schedule,
        max_grad_norm=at_least(0, optimization.max_grad_norm, "optimization.max_grad_norm"),
    )


def _ema_decay(value: float) -> float:
    if not 0 <= value < 1:
        raise InputError(f"config: optimization.ema_decay is {value}, expected 0 to below 1")
    return value


def _sampling(flow: Any) -> SigmaSampling:
    key = "flow_matching.timestep_sampling_mode"
    mode = one_of(flow, key, ("shifted_logit_normal", "uniform"))
    names = ("std",) if mode == "shifted_logit_normal" else ("min_value", "max_value")
    key = "flow_matching.timestep_sampling_params"
    sampling = SigmaSampling(mode, **known_pairs(flow.timestep_sampling_params, key, names))  # type: ignore[arg-type]
    if not 0 <= sampling.min_value <= sampling.max_value <= 1:
        raise InputError(f"config: {key}: min_value and max_value must be in order within 0..1")
    return sampling


# The torch trainer's names for what is here the nearest storage; its int2 and fp8uz have none.
_QUANTO = {"int8-quanto": "int8", "fp8-quanto": "fp8", "int4-quanto": "nf4"}


def _quantization(value: str | None) -> Any:
    name = _QUANTO.get(str(value), value)
    if name is not None and name not in SCHEMES:
        accepted = ", ".join((*SCHEMES, *_QUANTO))
        raise InputError(
            f"config: acceleration.quantization is {value!r}, expected None or one of {accepted}"
        )
    return name
