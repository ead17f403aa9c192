"""A run's samples: those to train on, by shape, and those that are held out."""

from collections.abc import Sequence

from rich.console import Console

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.data.samples import SampleFiles, ShapeGroup, group_by_shape, survey
from justdubit_jax.errors import InputError
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.values import not_given
from justdubit_jax.validation.holdout import split_holdout


def read_data(
    run: Settings, holdout: int = 0, console: Console | None = None
) -> tuple[list[ShapeGroup], list[SampleFiles]]:
    """The samples to train on, by shape, and the samples that are held out."""
    if run.data_root is None:
        raise not_given("data.preprocessed_data_root")
    found = survey(run.data_root, run.folders)
    if console:
        console.print(str(found), markup=False)
    samples, held_out = split_holdout(found.samples, holdout, run.seed)
    if not samples:
        raise InputError("config: validation.holdout leaves no sample to train on")
    return group_by_shape(samples), held_out


def largest(groups: Sequence[ShapeGroup]) -> SampleShape:
    """The shape of the most latents, whose step takes the most memory."""
    return max((group.shape for group in groups), key=latents_of)


def latents_of(shape: SampleShape) -> int:
    """Latents of a sample's picture, reference and target."""
    return shape.video.tokens
