"""How a prediction is pushed away from worse ones, and what a sampling is set to.

Source of the formulas: Lightricks/LTX-2 packages/ltx-core/src/ltx_core/components/guiders.py.
"""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import ONE_DEVICE, Execution
from justdubit_jax.models.transformer_config import CrossTimestep

StgMode = Literal["stg_av", "stg_v"]


class Prediction(enum.Enum):
    """The model's predictions that one guided step combines; each is a pass of the model."""

    PLAIN = enum.auto()  # with the prompt
    NEGATIVE = enum.auto()  # with the negative prompt
    PERTURBED = enum.auto()  # with self-attention left out
    ALONE = enum.auto()  # each modality without the other


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How one modality's prediction is pushed away from worse ones. The defaults are all off.

    `cfg` scales away from the negative prompt (off: 1); `stg` from the prediction whose
    self-attention in `stg_blocks` of this modality (None: all) is replaced by its values (off: 0);
    `modality` from the prediction without the other modality (off: 1). `rescale` brings the
    standard deviation back to that of the plain prediction (0: not at all, 1: fully).
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] | None = ()

    def combine(
        self,
        plain: Float[Array, "*b c"],
        negative: Float[Array, "*b c"] | None,
        perturbed: Float[Array, "*b c"] | None,
        alone: Float[Array, "*b c"] | None,
    ) -> Float[Array, "*b c"]:
        """Guided prediction; a prediction whose guidance is off is not used and may be None."""
        guided = plain
        for scale, other in (
            (self.cfg - 1, negative),
            (self.stg, perturbed),
            (self.modality - 1, alone),
        ):
            if scale and other is not None:
                guided = guided + scale * (plain - other)
        if self.rescale:
            factor = jnp.std(plain, ddof=1) / jnp.std(guided, ddof=1)
            guided = guided * (self.rescale * factor + (1 - self.rescale))
        return guided


def stg_blocks(
    mode: StgMode, blocks: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The `stg_blocks` of (video, audio): `stg_v` perturbs the self-attention of video alone.

    The scale stays that of both: audio too is pushed away from the perturbed prediction
    (packages/ltx-trainer/src/ltx_trainer/validation_sampler.py).
    """
    chosen = None if blocks is None else tuple(blocks)
    return chosen, (chosen if mode == "stg_av" else ())


def guidance_of_both(
    *,
    cfg: float,
    audio_cfg: float | None,
    video_modality: float,
    audio_modality: float,
    rescale: float,
    audio_rescale: float | None,
    stg: float,
    mode: StgMode,
    blocks: Sequence[int],
) -> tuple[Guidance, Guidance]:
    """Guidance of (video, audio); what is None for the sound is the picture's.

    `stg`, `mode` and `blocks` are those of spatio-temporal guidance, see `stg_blocks`.
    """
    video_blocks, audio_blocks = stg_blocks(mode, blocks if stg else ())
    video = Guidance(cfg, stg, video_modality, rescale, video_blocks)
    audio = Guidance(
        cfg=cfg if audio_cfg is None else audio_cfg,
        stg=stg,
        modality=audio_modality,
        rescale=rescale if audio_rescale is None else audio_rescale,
        stg_blocks=audio_blocks,
    )
    return video, audio


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How to sample. `isolate`, `cross_timestep` and `dtype` are the training's own.

    `batched` runs a step's passes as one batch; otherwise they run one after the other, in the
    memory of one. The results are equal up to rounding.
    """

    video: Guidance
    audio: Guidance
    isolate: bool
    cross_timestep: CrossTimestep
    dtype: DTypeLike
    batched: bool = True
    execution: Execution = ONE_DEVICE

    @property
    def passes(self) -> tuple[Prediction, ...]:
        """The predictions that a step needs."""
        both = self.video, self.audio
        wanted = {
            Prediction.PLAIN: True,
            Prediction.NEGATIVE: any(g.cfg != 1 for g in both),
            Prediction.PERTURBED: any(g.stg != 0 for g in both),
            Prediction.ALONE: any(g.modality != 1 for g in both),
        }
        return tuple(prediction for prediction in wanted if wanted[prediction])

    def check(self, layers: int) -> None:
        """Raises InputError if a perturbed block is not one of the model's `layers`."""
        for guidance in (self.video, self.audio):
            for block in guidance.stg_blocks or ():
                if not 0 <= block < layers:
                    raise InputError(f"stg_blocks: got {block}, expected 0 to {layers - 1}")
