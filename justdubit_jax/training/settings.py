"""The configuration, checked once and turned into plain values.

What a config asks for and this version does not do ends here with the reason, before anything is
loaded or written.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.errors import InputError
from justdubit_jax.lora.adapters import LoRAConfig
from justdubit_jax.models.attention import Remat
from justdubit_jax.models.quant import SCHEMES, Scheme
from justdubit_jax.models.tokens import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from justdubit_jax.sampling.guidance import Guidance, stg_blocks
from justdubit_jax.training import optimizer as optim
from justdubit_jax.training import schedules
from justdubit_jax.training.objective import MaskLoss, SigmaSampling


@dataclasses.dataclass(frozen=True)
class Validation:
    """Samples and held-out losses while training. Files exist; lists are as long as the prompts."""

    prompts: tuple[str, ...]
    negative_prompt: str
    images: tuple[Path, ...]
    reference_videos: tuple[Path, ...]
    videos_per_prompt: int
    include_reference: bool
    width: int
    height: int
    frames: int
    frame_rate: Fraction
    seed: int
    steps: int
    interval: int  # 0: none
    guidance: tuple[Guidance, Guidance]  # of video, of audio
    batch_guidance: bool | None  # None: by free memory
    with_sound: bool
    skip_initial: bool
    holdout: int
    text_encoder_path: Path | None


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
    optimizer: optim.Config
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


def is_due(step: int, interval: int) -> bool:
    """Whether something happens at a step that happens every `interval` steps; 0 is never."""
    return bool(interval) and step % interval == 0


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
        model_path=_existing(config.model.model_path, "model.model_path"),
        load_checkpoint=_optional_path(config.model.load_checkpoint, "model.load_checkpoint"),
        cross_timestep=_one_of(config.model, "model.cross_timestep", ("auto", "own", "other")),
        lora=LoRAConfig(
            rank=_at_least(1, config.lora.rank, "lora.rank"),
            alpha=_at_least(1, config.lora.alpha, "lora.alpha"),
            dropout=_within(0, 1, config.lora.dropout, "lora.dropout"),
            target_modules=tuple(config.lora.target_modules),
        ),
        dtype=jnp.bfloat16 if config.acceleration.mixed_precision_mode == "bf16" else jnp.float32,
        quantization=_quantization(config.acceleration.quantization),
        first_frame_p=_within(
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
        batch_size=_at_least(1, optimization.batch_size, "optimization.batch_size"),
        accumulation=_at_least(
            1, optimization.gradient_accumulation_steps, "optimization.gradient_accumulation_steps"
        ),
        remat=_remat(optimization.enable_gradient_checkpointing),
        mesh=(config.mesh.data, _at_least(1, config.mesh.fsdp, "mesh.fsdp")),
        data_root=(_optional_path if dry_run else _existing)(
            config.data.preprocessed_data_root, "data.preprocessed_data_root"
        ),
        reader_threads=_at_least(
            0, config.data.num_dataloader_workers, "data.num_dataloader_workers"
        ),
        checkpoint_interval=_at_least(0, config.checkpoints.interval, "checkpoints.interval"),
        keep_last_n=_at_least(-1, config.checkpoints.keep_last_n, "checkpoints.keep_last_n"),
        export_dtype=jnp.dtype(
            _one_of(config.checkpoints, "checkpoints.precision", ("bfloat16", "float32"))
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
        validation=_validation(config),
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


def _validation(config: Any) -> Validation:
    v = config.validation
    width, height, frames = _video_dims(v.video_dims)
    for key, values in (("images", v.images), ("reference_videos", v.reference_videos)):
        if values and len(values) != len(v.prompts):
            raise InputError(
                f"config: validation.{key} has {len(values)} entries, validation.prompts "
                f"{len(v.prompts)}; expected one a prompt"
            )
    for key in ("prompts", "images", "reference_videos"):
        if not all(isinstance(text, str) for text in v[key]):
            raise InputError(f"config: validation.{key} is {tuple(v[key])}, expected texts")
    for prompt in v.prompts:
        if not prompt.strip():
            raise InputError("config: validation.prompts has an empty prompt")
    if config.checkpoints.keep_best and not v.holdout:
        raise InputError("config: checkpoints.keep_best needs validation.holdout above 0")
    return Validation(
        prompts=tuple(v.prompts),
        negative_prompt=v.negative_prompt,
        images=tuple(_existing(path, "validation.images") for path in v.images),
        reference_videos=tuple(
            _existing(path, "validation.reference_videos") for path in v.reference_videos
        ),
        videos_per_prompt=_at_least(1, v.videos_per_prompt, "validation.videos_per_prompt"),
        include_reference=v.include_reference_in_output,
        width=width,
        height=height,
        frames=frames,
        frame_rate=exact_fps(v.frame_rate),
        seed=_within(0, 2**32 - 1, v.seed, "validation.seed"),
        steps=_at_least(1, v.inference_steps, "validation.inference_steps"),
        interval=_at_least(0, v.interval, "validation.interval"),
        guidance=_guidance(v),
        batch_guidance=v.batch_guidance,
        with_sound=v.generate_audio,
        skip_initial=v.skip_initial_validation,
        holdout=_at_least(0, v.holdout, "validation.holdout"),
        text_encoder_path=_existing(config.model.text_encoder_path, "model.text_encoder_path")
        if v.prompts and v.interval
        else None,
    )


def _remat(value: Any) -> Remat:
    names = {True: "full", False: "none", "attention": "attention", "offload": "offload"}
    if value not in names:
        raise InputError(
            f"config: optimization.enable_gradient_checkpointing is {value!r}, "
            "expected True, False, 'attention' or 'offload'"
        )
    return names[value]  # type: ignore[return-value]


def _optimizer(optimization: Any) -> optim.Config:
    kind = _one_of(optimization, "optimization.optimizer_type", optim.KINDS)
    key = "optimization.first_moment_dtype"
    first_moment = _one_of(optimization, key, ("float32", "bfloat16"))
    if kind == "adamw8bit" and first_moment != "float32":
        raise InputError(f"config: {key} is for adamw: adamw8bit's moments are bytes")
    key = "optimization.learning_rate_groups"
    groups = _pairs(optimization.learning_rate_groups, key)
    for pattern, rate in groups:
        _at_least(0, rate, key)
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"config: {key}: {pattern!r} is no regex: {error}") from None
    schedule = schedules.Schedule(
        kind=_one_of(optimization, "optimization.scheduler_type", schedules.KINDS),
        steps=_at_least(1, optimization.steps, "optimization.steps"),
        params=dict(_pairs(optimization.scheduler_params, "optimization.scheduler_params")),
        warmup_steps=_at_least(0, optimization.warmup_steps, "optimization.warmup_steps"),
    )
    return optim.Config(
        kind=kind,
        first_moment_dtype=first_moment,
        learning_rate=_at_least(0, optimization.learning_rate, "optimization.learning_rate"),
        groups=groups,
        schedule=schedule,
        max_grad_norm=_at_least(0, optimization.max_grad_norm, "optimization.max_grad_norm"),
    )


def _ema_decay(value: float) -> float:
    if not 0 <= value < 1:
        raise InputError(f"config: optimization.ema_decay is {value}, expected 0 to below 1")
    return value


def _video_dims(dims: Any) -> tuple[int, int, int]:
    """(width, height, frames) of a size that the model takes."""
    if len(dims) != 3 or not all(isinstance(n, int) for n in dims):
        raise InputError(
            f"config: validation.video_dims is {tuple(dims)}, expected (width, height, frames)"
        )
    off_grid = any(n < 1 or n % PIXELS_PER_LATENT for n in dims[:2])
    if off_grid or dims[2] < 1 or dims[2] % FRAMES_PER_LATENT != 1:
        raise InputError(
            f"config: validation.video_dims {'x'.join(map(str, dims))}: width and height must be "
            "multiples of 32 and frames 8k+1"
        )
    return tuple(dims)


def _guidance(v: Any) -> tuple[Guidance, Guidance]:
    """Guidance of (video, audio); what is None for the sound is the picture's."""

    def scale(key: str, default: Any = None) -> float:
        value = default if v[key] is None else v[key]
        return _at_least(1, value, f"validation.{key}")

    def rescale(key: str, default: Any = None) -> float:
        value = default if v[key] is None else v[key]
        return _within(0, 1, value, f"validation.{key}")

    stg = _at_least(0, v.stg_scale, "validation.stg_scale")
    mode: Any = _one_of(v, "validation.stg_mode", ("stg_av", "stg_v"))
    if not all(isinstance(block, int) for block in v.stg_blocks) or (stg and not v.stg_blocks):
        raise InputError(
            f"config: validation.stg_blocks is {tuple(v.stg_blocks)}, expected numbers of blocks"
        )
    blocks = stg_blocks(mode, v.stg_blocks if stg else ())
    return (
        Guidance(
            cfg=scale("guidance_scale"),
            stg=stg,
            modality=scale("video_modality_guidance_scale"),
            rescale=rescale("guidance_rescale"),
            stg_blocks=blocks[0],
        ),
        Guidance(
            cfg=scale("audio_cfg_scale", v.guidance_scale),
            stg=stg,
            modality=scale("audio_modality_guidance_scale"),
            rescale=rescale("audio_guidance_rescale", v.guidance_rescale),
            stg_blocks=blocks[1],
        ),
    )


def _sampling(flow: Any) -> SigmaSampling:
    key = "flow_matching.timestep_sampling_mode"
    mode = _one_of(flow, key, ("shifted_logit_normal", "uniform"))
    names = ("std",) if mode == "shifted_logit_normal" else ("min_value", "max_value")
    key = "flow_matching.timestep_sampling_params"
    sampling = SigmaSampling(mode, **_known_pairs(flow.timestep_sampling_params, key, names))  # type: ignore[arg-type]
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


def _existing(value: str | None, key: str) -> Path:
    if not value:
        raise InputError(f"config: {key} is missing: give it as --config.{key}=PATH")
    path = Path(value).expanduser()
    if not path.exists():
        raise InputError(f"config: {key}: {path} does not exist")
    return path


def _optional_path(value: str | None, key: str) -> Path | None:
    return _existing(value, key) if value else None


def _one_of(section: Any, key: str, allowed: Sequence[str]) -> str:
    value = section[key.rpartition(".")[2]]
    if value not in allowed:
        raise InputError(f"config: {key} is {value!r}, expected one of {', '.join(allowed)}")
    return value


def _at_least(limit: int, value: Any, key: str) -> Any:
    if not value >= limit:
        raise InputError(f"config: {key} is {value}, expected at least {limit}")
    return value


def _within(low: float, high: float, value: Any, key: str) -> Any:
    if not low <= value <= high:
        raise InputError(f"config: {key} is {value}, expected {low} to {high}")
    return value


def _pairs(value: Any, key: str) -> tuple[tuple[str, float], ...]:
    try:
        return tuple((str(name), float(number)) for name, number in value)
    except (TypeError, ValueError):
        raise InputError(
            f"config: {key} is {value!r}, expected pairs (('name', number), …)"
        ) from None


def _known_pairs(value: Any, key: str, known: Sequence[str]) -> dict[str, float]:
    pairs = dict(_pairs(value, key))
    for name in pairs:
        if name not in known:
            raise InputError(f"config: {key}: unknown {name!r}, expected {', '.join(known)}")
    return pairs
