"""The validation's part of the configuration."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout
from justdubit_jax.sampling.guidance import Guidance, stg_blocks
from justdubit_jax.training.values import at_least, existing, one_of, within


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

    def check_size(self, layout: Layout) -> None:
        """Raises InputError unless it is a size that the checkpoint's codecs take."""
        multiple, dims = layout.pixels_per_latent, (self.width, self.height, self.frames)
        off_grid = any(n < 1 or n % multiple for n in dims[:2])
        if off_grid or not layout.is_legal(self.frames):
            raise InputError(
                f"config: validation.video_dims {'x'.join(map(str, dims))}: width and height must "
                f"be multiples of {multiple} and frames {layout.frames_per_latent}k+1"
            )


def read_validation(config: Any) -> Validation:
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
        images=tuple(existing(path, "validation.images") for path in v.images),
        reference_videos=tuple(
            existing(path, "validation.reference_videos") for path in v.reference_videos
        ),
        videos_per_prompt=at_least(1, v.videos_per_prompt, "validation.videos_per_prompt"),
        include_reference=v.include_reference_in_output,
        width=width,
        height=height,
        frames=frames,
        frame_rate=exact_fps(v.frame_rate),
        seed=within(0, 2**32 - 1, v.seed, "validation.seed"),
        steps=at_least(1, v.inference_steps, "validation.inference_steps"),
        interval=at_least(0, v.interval, "validation.interval"),
        guidance=_guidance(v),
        batch_guidance=v.batch_guidance,
        with_sound=v.generate_audio,
        skip_initial=v.skip_initial_validation,
        holdout=at_least(0, v.holdout, "validation.holdout"),
        text_encoder_path=existing(config.model.text_encoder_path, "model.text_encoder_path")
        if v.prompts and v.interval
        else None,
    )


def _video_dims(dims: Any) -> tuple[int, int, int]:
    """(width, height, frames)."""
    if len(dims) != 3 or not all(isinstance(n, int) for n in dims):
        raise InputError(
            f"config: validation.video_dims is {tuple(dims)}, expected (width, height, frames)"
        )
    return tuple(dims)


def _guidance(v: Any) -> tuple[Guidance, Guidance]:
    """Guidance of (video, audio); what is None for the sound is the picture's."""

    def scale(key: str, default: Any = None) -> float:
        value = default if v[key] is None else v[key]
        return at_least(1, value, f"validation.{key}")

    def rescale(key: str, default: Any = None) -> float:
        value = default if v[key] is None else v[key]
        return within(0, 1, value, f"validation.{key}")

    stg = at_least(0, v.stg_scale, "validation.stg_scale")
    mode: Any = one_of(v, "validation.stg_mode", ("stg_av", "stg_v"))
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
