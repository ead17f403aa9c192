"""A run's step compiled for a card that is not there: what it takes, and how long."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.devices import sharding
from justdubit_jax.files import replacing
from justdubit_jax.models.attention import Attend, flash_attention, plain_attention
from justdubit_jax.planning.cards import Card
from justdubit_jax.planning.described import OPTIONS, described
from justdubit_jax.planning.estimate import Estimate, Share, estimate
from justdubit_jax.planning.memory import Plan, compile_step, program_bytes
from justdubit_jax.planning.phases import Phase, Work
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.training.prepare import Training

# What `advised` tries, each alone: keys of the config and their values.
SWITCHES: Mapping[str, str] = {
    "optimization.enable_gradient_checkpointing=keys": "keys, values and attention kept",
    "optimization.enable_gradient_checkpointing=attention": "attention kept",
    "optimization.enable_gradient_checkpointing=True": "everything recomputed",
    "optimization.enable_gradient_checkpointing=offload": "the blocks' inputs in host memory",
    "optimization.first_moment_dtype=bfloat16": "half of a moment",
    "optimization.optimizer_type=adamw8bit": "moments of a byte",
    "acceleration.quantization=int8": "the base in bytes",
    "acceleration.quantization=nf4": "the base in half bytes",
    "lora.rank=32": "a quarter of the adapters",
}


class Rented(NamedTuple):
    """A step on a card: its plan and how long it takes."""

    plan: Plan
    estimate: Estimate

    @property
    def mfu(self) -> float:
        """The share of the cards' peak that the model's own operations take."""
        e = self.estimate
        return self.plan.flops.model / (e.seconds * e.card.peak_bf16 * e.devices)


class Other(NamedTuple):
    """Another program of a run on a card: its bytes, and how long one run of it takes."""

    bytes: int
    estimate: Estimate


def attention_of(card: Card) -> Attend:
    """cuDNN's attention where the card has it."""
    return flash_attention if card.has_flash else plain_attention


@contextmanager
def mesh_of(card: Card, data: int, fsdp: int) -> Iterator[Mesh]:
    """A mesh of described cards, for what is compiled inside; data = -1 is 1."""
    data = max(data, 1)
    with described(card, data * fsdp) as devices:
        yield sharding.make_mesh(data, fsdp, devices)


def rent(training: Training, shape: SampleShape, card: Card) -> Rented:
    """Compile the step for the card, whose mesh the training has; "auto" is decided for it."""
    program = None
    if training.run.remat is None:
        training, program = keeping_what_fits(training, shape, card.limit, OPTIONS)
    program = program or compile_step(training, shape, OPTIONS)
    text = program.run.as_text() or ""
    return Rented(program.plan, estimate(text, card, training.mesh.size))


def rent_phase(phase: Phase, work: Work, card: Card) -> Other:
    """Compile another program of the run for the card."""
    program = phase(work).compile(dict(OPTIONS))
    text = program.as_text() or ""
    return Other(program_bytes(program), estimate(text, card, work.training.mesh.size))


def advised(prepare: Callable[[str], Rented]) -> Iterator[tuple[str, str, Rented | str]]:
    """Each switch with what it does and the step with it, or why there is none.

    `prepare` makes the step of the run with a key set, as "key=value".
    """
    for setting, meaning in SWITCHES.items():
        try:
            yield setting, meaning, prepare(setting)
        except Exception as error:  # of one switch, which the others need not know
            yield setting, meaning, str(error).splitlines()[0]


def as_json(rented: Rented) -> dict[str, Any]:
    """All figures: bytes, seconds, operations."""
    plan, e = rented.plan, rented.estimate
    return {
        "card": dataclasses.asdict(e.card) | {"limit": e.card.limit},
        "devices": e.devices,
        "compiled_not_run": True,
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
        "fits": plan.memory.total <= e.card.limit,
        "kept": plan.training.objective.execution.remat,
        "seconds": e.seconds,
        "hidden_seconds": e.hidden,
        "launches": e.launches,
        "mfu": rented.mfu,
        "operations": {"model": plan.flops.model, "run": e.operations * e.devices},
        "kinds": [_share(share) for share in e.by_kind()],
        "dearest": [_share(share) for share in e.dearest(12)],
        "collectives": [
            {
                "kind": kernel.kind,
                "times": kernel.times,
                "bytes": kernel.bytes,
                "seconds": kernel.times * kernel.seconds,
                "exposed": kernel.total,
            }
            for kernel in e.collectives
        ],
    }


def write_json(rented: Rented, others: Mapping[str, Other], path: Path) -> None:
    """All figures of the step, and those of the other programs, by name."""
    figures = as_json(rented)
    figures["phases"] = {
        name: {"bytes": other.bytes, "seconds": other.estimate.seconds}
        for name, other in others.items()
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")


def _share(share: Share) -> dict[str, Any]:
    return share._asdict() | {"lines": list(share.lines)}
