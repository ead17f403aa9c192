"""The configuration of a training, checked once and turned into plain values.

What a config asks for and this version does not do ends here with the reason, before anything is
loaded or written. The validation's part is validation/settings.py's.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from ml_collections import ConfigDict

from justdubit_jax.errors import about
from justdubit_jax.lora.adapters import LoRAConfig
from justdubit_jax.models.attention import Remat
from justdubit_jax.models.quant import SCHEMES, Scheme
from justdubit_jax.models.transformer_config import CrossTimestep
from justdubit_jax.training import schedules
from justdubit_jax.training.objective import MaskLoss, SigmaSampling
from justdubit_jax.training.optimizer import KINDS, OptimizerConfig
from justdubit_jax.training.values import Values


@dataclasses.dataclass(frozen=True)
class Wandb:
    """What Weights & Biases is told of a run besides its metrics."""

    project: str
    entity: str | None  # user or team; None: the account's default
    tags: tuple[str, ...]
    log_validation_videos: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run. Paths exist; numbers are finite and in range."""

    model_path: Path  # checkpoint file, or converted folder
    load_checkpoint: Path | None  # LoRA file, or its folder, to start from
    cross_timestep: CrossTimestep | None  # None: as the checkpoint wants it
    lora: LoRAConfig
    dtype: jnp.dtype  # of base weights and activations
    quantization: Scheme | None  # storage of the blocks' frozen weights; None is dtype
    first_frame_p: float  # how often the first frame is given, 0..1
    isolate: bool  # no audio-video attention to references
    folders: Mapping[str, str]  # role -> folder below data_root
    mask_loss: MaskLoss | None  # None: all pixels weigh the same
    sampling: SigmaSampling
    optimizer: OptimizerConfig
    ema_decay: float  # of a running mean of the adapters, 0..1; 0 is off
    batch_size: int  # samples a micro-batch and device
    accumulation: int  # micro-batches a step
    remat: Remat | None  # None: what is kept beside the rest of the step fits the device
    mesh: tuple[int, int]  # devices along (data, fsdp); data -1: those that fsdp leaves
    data_root: Path | None  # .precomputed, or the folder with it; a dry run may do without
    reader_threads: int  # 0: read in the loop
    checkpoint_interval: int  # steps; 0: the last step only
    keep_last_n: int  # checkpoints; below 1: all
    export_dtype: jnp.dtype  # of the LoRA files
    seed: int
    wandb: Wandb | None  # None: off
    output_dir: Path

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.optimizer.schedule.steps


# What the values of a config stand for.
_CROSS_TIMESTEP: Mapping[str, CrossTimestep | None] = {
    "auto": None,
    **{rule: rule for rule in typing.get_args(CrossTimestep)},
}
_DTYPE = {"bf16": jnp.dtype("bfloat16"), "no": jnp.dtype("float32")}
_REMAT: Mapping[bool | str, Remat | None] = {
    "auto": None,
    True: "full",
    False: "none",
    "attention": "attention",
    "keys": "keys",
    "queries": "queries",
    "offload": "offload",
}
# The torch trainer's names stand for the nearest storage; its int2 and fp8uz have none.
_QUANTO: Mapping[str, Scheme] = {"int8-quanto": "int8", "fp8-quanto": "fp8", "int4-quanto": "nf4"}
_QUANTIZATION = {**{name: name for name in SCHEMES}, **_QUANTO, None: None}
# The parameters of a sampling mode.
_SIGMA_PARAMS: Mapping[Literal["shifted_logit_normal", "uniform"], tuple[str, ...]] = {
    "shifted_logit_normal": ("std",),
    "uniform": ("min_value", "max_value"),
}


def read(config: ConfigDict) -> Settings:
    """Check a config with the keys of configs/dub.py. Raises InputError naming the key."""
    v = Values(config)
    _refuse(v)
    mask_loss = _mask_loss(v)
    return Settings(
        model_path=v.existing_path("model.model_path"),
        load_checkpoint=v.optional(v.existing_path, "model.load_checkpoint"),
        cross_timestep=v.meaning("model.cross_timestep", _CROSS_TIMESTEP),
        lora=_lora(v),
        dtype=v.meaning("acceleration.mixed_precision_mode", _DTYPE),
        quantization=v.meaning("acceleration.quantization", _QUANTIZATION),
        first_frame_p=v.within(0, 1, "training_strategy.first_frame_conditioning_p"),
        isolate=v.flag("training_strategy.enable_cross_attention_masking"),
        folders=_folders(v, with_masks=mask_loss is not None),
        mask_loss=mask_loss,
        sampling=_sampling(v),
        optimizer=_optimizer(v),
        ema_decay=v.below(1, "optimization.ema_decay"),
        batch_size=v.whole(1, "optimization.batch_size"),
        accumulation=v.whole(1, "optimization.gradient_accumulation_steps"),
        remat=v.meaning("optimization.enable_gradient_checkpointing", _REMAT),
        mesh=(v.whole(-1, "mesh.data"), v.whole(1, "mesh.fsdp")),
        data_root=v.optional(v.existing_path, "data.preprocessed_data_root"),
        reader_threads=v.whole(0, "data.num_dataloader_workers"),
        checkpoint_interval=v.whole(0, "checkpoints.interval"),
        keep_last_n=_keep_last_n(v),
        export_dtype=jnp.dtype(v.one_of("checkpoints.precision", ("bfloat16", "float32"))),
        seed=v.whole(0, "seed", 2**32 - 1),
        wandb=_wandb(v),
        output_dir=Path(v.text("output_dir")).expanduser(),
    )


def _refuse(v: Values) -> None:
    """Values that no version takes, and those that a later one will."""
    v.must_be("training_strategy.name", "justdubit")
    v.must_be("training_strategy.with_audio", True, "dubbing trains picture and voice together")
    v.must_be(
        "model.training_mode",
        "lora",
        "19B float32 masters with their moments do not fit one device",
    )
    v.must_be(
        "acceleration.load_text_encoder_in_8bit",
        False,
        "not needed, since the text encoder is gone before the transformer is loaded",
    )
    v.must_be("hub.push_to_hub", False, "not supported yet")


def _lora(v: Values) -> LoRAConfig:
    return LoRAConfig(
        rank=v.whole(1, "lora.rank"),
        alpha=v.at_least(1, "lora.alpha"),
        dropout=v.below(1, "lora.dropout"),
        target_modules=_targets(v),
    )


def _targets(v: Values) -> tuple[str, ...]:
    key = "lora.target_modules"
    if not (targets := v.texts(key)):
        raise v.wrong(key, "names of modules, or there is nothing to train")
    return targets


def _mask_loss(v: Values) -> MaskLoss | None:
    if not v.flag("training_strategy.mask_config.use_masked_loss"):
        return None
    face = v.at_least(0, "training_strategy.mask_config.mask_loss_weight")
    background = v.at_least(0, "training_strategy.mask_config.background_loss_weight")
    if not face and not background:
        raise v.wrong(
            "training_strategy.mask_config.mask_loss_weight",
            "a number above 0 here or in background_loss_weight, or no picture is trained",
        )
    return MaskLoss(
        mask_loss_weight=face,
        background_loss_weight=background,
        mask_threshold=v.within(0, 1, "training_strategy.mask_config.mask_threshold"),
        use_soft_masks=v.flag("training_strategy.mask_config.use_soft_masks"),
    )


def _folders(v: Values, with_masks: bool) -> dict[str, str]:
    folders = {
        "latents": "latents",
        "conditions": "conditions",
        "audio_latents": v.text("training_strategy.audio_latents_dir"),
        "reference_latents": v.text("training_strategy.reference_latents_dir"),
        "reference_audio_latents": v.text("training_strategy.reference_audio_latents_dir"),
    }
    if with_masks:
        folders["masks"] = v.text("training_strategy.mask_config.mask_dir")
    return folders


def _sampling(v: Values) -> SigmaSampling:
    mode = v.one_of("flow_matching.timestep_sampling_mode", tuple(_SIGMA_PARAMS))
    key = "flow_matching.timestep_sampling_params"
    sampling = SigmaSampling(mode, **v.known_pairs(key, _SIGMA_PARAMS[mode]))
    if not 0 <= sampling.min_value <= sampling.max_value <= 1:
        raise v.wrong(key, "min_value and max_value in order within 0..1")
    return sampling


def _optimizer(v: Values) -> OptimizerConfig:
    kind = v.one_of("optimization.optimizer_type", KINDS)
    moments = "optimization.first_moment_dtype"
    if kind == "adamw8bit":
        v.must_be(moments, "float32", "it is for adamw, the moments of adamw8bit are bytes")
    return OptimizerConfig(
        kind=kind,
        first_moment_dtype=v.one_of(moments, ("float32", "bfloat16")),
        learning_rate=v.at_least(0, "optimization.learning_rate"),
        groups=_rate_groups(v),
        schedule=_schedule(v),
        max_grad_norm=v.at_least(0, "optimization.max_grad_norm"),
    )


def _schedule(v: Values) -> schedules.Schedule:
    kind = v.one_of("optimization.scheduler_type", schedules.KINDS)
    steps = v.whole(1, "optimization.steps")
    warmup = v.whole(0, "optimization.warmup_steps", steps)
    params = dict(v.pairs("optimization.scheduler_params"))
    with about("config: optimization.scheduler_params"):
        return schedules.Schedule(kind, steps, params, warmup)


def _keep_last_n(v: Values) -> int:
    key = "checkpoints.keep_last_n"
    if v.whole(-1, key) == 0:
        raise v.wrong(key, "-1 to keep all, or at least 1: the last is what training ends with")
    return v[key]


def _rate_groups(v: Values) -> tuple[tuple[str, float], ...]:
    """Pairs of a regex and a rate."""
    key = "optimization.learning_rate_groups"
    groups = v.pairs(key)
    for pattern, rate in groups:
        if rate < 0:
            raise v.wrong(key, "rates of at least 0")
        try:
            re.compile(pattern)
        except re.error as error:
            raise v.wrong(key, f"regexes, but {pattern!r} is none: {error}") from None
    return groups


def _wandb(v: Values) -> Wandb | None:
    if not v.flag("wandb.enabled"):
        return None
    return Wandb(
        project=v.text("wandb.project"),
        entity=v.optional(v.text, "wandb.entity"),
        tags=v.texts("wandb.tags"),
        log_validation_videos=v.flag("wandb.log_validation_videos"),
    )
