"""The validation's part of the configuration, and what it has to agree on with the training's."""

import dataclasses
from fractions import Fraction
from pathlib import Path

from ml_collections import ConfigDict

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout
from justdubit_jax.sampling.guidance import Guidance, StgMode, guidance_of_both
from justdubit_jax.training.values import Values


@dataclasses.dataclass(frozen=True)
class Validation:
    """Samples and held-out losses while training.

    Files exist; `images` and `reference_videos` are empty or as long as `prompts`.
    """

    prompts: tuple[str, ...]  # none: no samples
    negative_prompt: str
    images: tuple[Path, ...]  # first frames
    reference_videos: tuple[Path, ...]  # clips to dub
    videos_per_prompt: int
    include_reference: bool  # beside the sample, in its mp4
    width: int  # pixels; see check_size
    height: int
    frames: int
    frame_rate: Fraction  # frames per second
    seed: int  # of a prompt's first sample; the next one's is one more
    steps: int  # Euler steps of a sample
    interval: int  # training steps between two looks; 0: none
    guidance: tuple[Guidance, Guidance]  # of video, of audio
    batch_guidance: bool | None  # passes side by side; None: by free memory
    with_sound: bool
    skip_initial: bool  # no look before the first step
    holdout: int  # samples kept out of training
    keep_best: bool  # name the checkpoint of least held-out loss; only with a holdout
    text_encoder_path: Path | None  # None only where there is nothing to sample

    def check_size(self, layout: Layout) -> None:
        """Raises InputError unless it is a size that the checkpoint's codecs take."""
        multiple, dims = layout.pixels_per_latent, (self.width, self.height, self.frames)
        off_grid = any(n < 1 or n % multiple for n in dims[:2])
        if off_grid or not layout.is_legal(self.frames):
            raise InputError(
                f"config: validation.video_dims is {dims}, expected width and height in multiples "
                f"of {multiple}, and frames {layout.frames_per_latent}k+1"
            )


def read_validation(config: ConfigDict) -> Validation:
    """Check a config with the keys of configs/dub.py. Raises InputError naming the key."""
    v = Values(config)
    _check_same_model(v)
    prompts, interval = _prompts(v), v.whole(0, "validation.interval")
    width, height, frames = _video_dims(v)
    holdout = v.whole(0, "validation.holdout")
    return Validation(
        prompts=prompts,
        negative_prompt=v.text("validation.negative_prompt"),
        images=_files(v, "validation.images", len(prompts)),
        reference_videos=_files(v, "validation.reference_videos", len(prompts)),
        videos_per_prompt=v.whole(1, "validation.videos_per_prompt"),
        include_reference=v.flag("validation.include_reference_in_output"),
        width=width,
        height=height,
        frames=frames,
        frame_rate=_frame_rate(v),
        seed=v.whole(0, "validation.seed", 2**32 - 1),
        steps=v.whole(1, "validation.inference_steps"),
        interval=interval,
        guidance=_guidance(v),
        batch_guidance=v.optional(v.flag, "validation.batch_guidance"),
        with_sound=v.flag("validation.generate_audio"),
        skip_initial=v.flag("validation.skip_initial_validation"),
        holdout=holdout,
        keep_best=_keep_best(v, holdout),
        text_encoder_path=v.existing_path("model.text_encoder_path")
        if prompts and interval
        else None,
    )


def _check_same_model(v: Values) -> None:
    v.must_be(
        "validation.enable_cross_attention_masking",
        v["training_strategy.enable_cross_attention_masking"],
        "as training_strategy's, or samples would show another model than the trained one",
    )


def _prompts(v: Values) -> tuple[str, ...]:
    prompts = v.texts("validation.prompts")
    if not all(prompt.strip() for prompt in prompts):
        raise v.wrong("validation.prompts", "no empty prompt")
    return prompts


def _files(v: Values, key: str, prompts: int) -> tuple[Path, ...]:
    """One a prompt, or none at all."""
    paths = v.existing_paths(key)
    if paths and len(paths) != prompts:
        raise v.wrong(key, f"one for each of validation.prompts, which are {prompts}, or none")
    return paths


def _video_dims(v: Values) -> tuple[int, int, int]:
    dims = v.whole_numbers("validation.video_dims")
    if len(dims) != 3:
        raise v.wrong("validation.video_dims", "(width, height, frames)")
    width, height, frames = dims
    return width, height, frames


def _frame_rate(v: Values) -> Fraction:
    key = "validation.frame_rate"
    try:
        return exact_fps(v[key])
    except (InputError, TypeError):
        raise v.wrong(key, "frames per second, a number above 0") from None


def _guidance(v: Values) -> tuple[Guidance, Guidance]:
    stg, blocks = v.at_least(0, "validation.stg_scale"), v.whole_numbers("validation.stg_blocks")
    if stg and not blocks:
        raise v.wrong("validation.stg_blocks", "numbers of blocks")
    mode: StgMode = v.one_of("validation.stg_mode", ("stg_av", "stg_v"))
    return guidance_of_both(
        cfg=v.at_least(1, "validation.guidance_scale"),
        audio_cfg=v.optional(v.at_least, 1, "validation.audio_cfg_scale"),
        video_modality=v.at_least(1, "validation.video_modality_guidance_scale"),
        audio_modality=v.at_least(1, "validation.audio_modality_guidance_scale"),
        rescale=v.within(0, 1, "validation.guidance_rescale"),
        audio_rescale=v.optional(v.within, 0, 1, "validation.audio_guidance_rescale"),
        stg=stg,
        mode=mode,
        blocks=blocks,
    )


def _keep_best(v: Values, holdout: int) -> bool:
    key = "checkpoints.keep_best"
    if not holdout:
        v.must_be(key, False, "without validation.holdout no loss tells which is the best")
    return v.flag(key)
