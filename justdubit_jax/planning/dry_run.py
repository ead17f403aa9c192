"""A run as it is planned before it is started, printed: on this machine's devices, or on a card."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.devices import sharding
from justdubit_jax.errors import about
from justdubit_jax.models.attention import attention
from justdubit_jax.planning.cards import Card
from justdubit_jax.planning.memory import compile_step, device_memory, shape_of_size
from justdubit_jax.planning.phases import PHASES, Work
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.planning.rent import (
    Rented,
    advised,
    attention_of,
    mesh_of,
    rent,
    rent_phase,
    write_json,
)
from justdubit_jax.planning.show import show, show_advice, show_estimate, show_other
from justdubit_jax.planning.stand_in import flash_stand_in
from justdubit_jax.training import settings
from justdubit_jax.training.prepare import Training, prepare_training
from justdubit_jax.training.settings import Settings
from justdubit_jax.training.values import Values, not_given
from justdubit_jax.validation.data import largest, read_data
from justdubit_jax.validation.settings import Validation, read_validation
from justdubit_jax.weights.checkpoint import checkpoint_config


def dry_run(config: ConfigDict, memory: int | None) -> None:
    """Print what the largest step needs; `memory` is the device's bytes, else what it tells."""
    run, v = settings.read(config), read_validation(config)
    with about("config: mesh.data x mesh.fsdp"):
        mesh = sharding.make_mesh(*run.mesh)
    attend = attention if jax.default_backend() == "gpu" else flash_stand_in
    training = prepare_training(run, checkpoint_config(run.model_path), mesh, attend)
    shape, program = largest_shape(run, v, training), None
    if run.remat is None:
        limit = memory or device_memory()
        training, program = keeping_what_fits(training, shape, limit)
    program = program or compile_step(training, shape)
    show(Console(highlight=False, soft_wrap=True), program.plan, memory or device_memory())


def dry_run_on(
    card: Card,
    read: Callable[..., ConfigDict],
    phases: Sequence[str] = (),
    advise: bool = False,
    json_file: Path | None = None,
    kernels_file: Path | None = None,
) -> None:
    """Print what the largest step of a config, and other phases, need on a card that is not there.

    `read` gives the config, with more words of a command line.
    """
    console = Console(highlight=False, soft_wrap=True)

    def step(*more: str) -> Rented:
        with work_on(card, read(*more)) as work:
            return rent(work.training, work.shape, card)

    made, others = step(), {}
    show(console, made.plan, card.limit)
    show_estimate(console, made)
    with work_on(card, read()) as work:
        for name in phases:
            if name == "text" and work.gemma is None:
                raise not_given("model.text_encoder_path")
            others[name] = rent_phase(PHASES[name], work, card)
            show_other(console, name, others[name])
    if json_file is not None:
        write_json(made, others, json_file)
    if kernels_file is not None:
        made.estimate.write_kernels(kernels_file)
    if advise:
        console.print("each switch alone, compiled:")
        show_advice(console, advised(lambda setting: step(f"--config.{setting}")))


@contextlib.contextmanager
def work_on(card: Card, config: ConfigDict) -> Iterator[Work]:
    """A run's programs for a card, to be compiled inside."""
    run, v = settings.read(config), read_validation(config)
    with mesh_of(card, *run.mesh) as mesh:
        metadata = checkpoint_config(run.model_path)
        training = prepare_training(run, metadata, mesh, attention_of(card))
        values, key = Values(config), "model.text_encoder_path"
        gemma = values.optional(values.existing_path, key)
        yield Work(training, v, largest_shape(run, v, training), metadata, gemma)


def largest_shape(run: Settings, v: Validation, training: Training) -> SampleShape:
    """Of the data set if there is one, else a sample of the validation's size."""
    if run.data_root is not None:
        return largest(read_data(run, v.holdout)[0])
    v.check_size(training.layout)
    size = v.width, v.height, v.frames, v.frame_rate
    return shape_of_size(training.config, training.layout, *size)
