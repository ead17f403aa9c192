"""What a run needs, as a person reads it."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group
from rich.table import Table

from justdubit_jax.models.attention import Remat
from justdubit_jax.planning.advice import advice
from justdubit_jax.planning.kernels import LAUNCH
from justdubit_jax.planning.memory import Memory, Plan, gb
from justdubit_jax.planning.rent import Other, Rented
from justdubit_jax.training.prepare import Training

_KEPT: Mapping[Remat, str] = {
    "none": "everything",
    "full": "their inputs",
    "attention": "their inputs and the attention's outputs",
    "keys": "their inputs and the attention's outputs, keys and values",
    "queries": "their inputs and the attention's outputs, keys, values and queries",
    "offload": "their inputs, in host memory",
}


def summary(plan: Plan, limit: int | None) -> str:
    """One line."""
    parts = {k: v for k, v in dataclasses.asdict(plan.memory).items() if v}
    listed = ", ".join(f"{name} {gb(count)}" for name, count in parts.items())
    of = "" if limit is None else f" of {gb(limit)}"
    work = plan.flops.model / 1e12
    return f"a step: {gb(plan.memory.total)}{of} a device ({listed}); {work:.3g} TFLOP in the model"


def show(console: Console, plan: Plan, limit: int | None) -> None:
    """What a person wants to know before a run."""
    training, memory = plan.training, plan.memory
    console.print(Group(_modules(training), _parameters(training), _memory(memory)))
    video, audio, work = plan.shape.video, plan.shape.audio, plan.flops
    console.print(
        f"tokens: {video.tokens} video ({video.reference} of the reference), "
        f"{audio.tokens} audio ({audio.reference}), {video.text} text; "
        f"{training.run.accumulation} x {training.run.batch_size} samples a device, "
        f"{training.mesh.size} devices"
    )
    console.print(f"kept of the blocks: {_KEPT[training.objective.execution.remat]}")
    console.print(
        f"operations: {work.model / 1e12:.4g} TFLOP a step in the model, "
        f"{work.total / 1e12:.4g} with what is recomputed"
    )
    if plan.stood_in:
        console.print(
            "compiled for a CPU: flash attention, which a CPU has not, is stood in for by its "
            "memory, and workspace includes float32 copies that a GPU does not make"
        )
    if limit is None:
        console.print("the device's memory is not known: give --device-memory, e.g. 80GB")
    elif memory.total <= limit:
        console.print(f"fits: {gb(memory.total)} of {gb(limit)}")
    else:
        console.print(f"does not fit: {gb(memory.total)} of {gb(limit)}; in order of cost:")
        for what, left in advice(plan, limit):
            console.print(f"  {what}: about {gb(left)}")


def show_estimate(console: Console, rented: Rented, count: int = 12) -> None:
    """How long a step takes on a card, and what takes longest."""
    e = rented.estimate
    cards = f"{e.devices} x {e.card.name}" if e.devices > 1 else e.card.name
    console.print(
        f"estimate for {cards}, compiled and not run: {e.seconds:.3f} s a step, "
        f"MFU {rented.mfu:.0%}; {e.launches:,} kernels of at least {LAUNCH * 1e6:g} us, "
        f"{e.hidden * 1e3:.0f} ms of transfers beside them"
    )
    kinds = Table("kind", "ms", "runs", title="a step by kinds of kernels")
    for share in e.by_kind():
        kinds.add_row(share.what, f"{share.seconds * 1e3:.1f}", f"{share.runs:,}")
    console.print(kinds)
    console.print(f"the {count} dearest, with the code that they are of:")
    for share in e.dearest(count):
        console.print(
            f"{share.seconds * 1e3:8.1f} ms  {share.runs:5} x {share.what}  {share.shape}  "
            f"{' < '.join(share.lines[:3])}",
            markup=False,
        )
    if moved := e.collectives:
        sent = sum(kernel.times * kernel.bytes for kernel in moved)
        took = sum(kernel.times * kernel.seconds for kernel in moved)
        waits = sum(kernel.total for kernel in moved)
        console.print(
            f"between the cards: {gb(sent)} a card and step, {took * 1e3:.0f} ms at "
            f"{e.card.link / 1e9:g} GB/s, of which nothing else is done in {waits * 1e3:.0f} ms"
        )


def show_other(console: Console, name: str, other: Other) -> None:
    """A phase in a line."""
    fits = "fits" if other.bytes <= other.estimate.card.limit else "does not fit"
    seconds = other.estimate.seconds
    console.print(f"{name}: {gb(other.bytes)}, {fits}; {seconds:.3f} s a run", markup=False)


def show_advice(console: Console, switches: Iterable[tuple[str, str, Rented | str]]) -> None:
    """Each switch, compiled, as it comes."""
    for setting, meaning, made in switches:
        if isinstance(made, str):
            console.print(f"{setting} ({meaning}): {made}", markup=False)
            continue
        total, limit = made.plan.memory.total, made.estimate.card.limit
        fits = "fits" if total <= limit else "does not fit"
        console.print(
            f"{setting} ({meaning}): {gb(total)}, {fits}; {made.estimate.seconds:.3f} s a step"
        )


def _modules(training: Training) -> Table:
    table = Table("LoRA target", "modules", title="adapters")
    for target, names in training.targets.items():
        table.add_row(target, str(len(names)))
    return table


def _parameters(training: Training) -> Table:
    """Parameters by part and type; bytes are of all devices together."""
    found: Counter[tuple[str, str]] = Counter()
    state, frozen = training.abstract_state, training.abstract.frozen
    parts: Mapping[str, Any] = {
        "base, blocks": frozen["blocks"],
        "base, around the blocks": {k: v for k, v in frozen.items() if k != "blocks"},
        "LoRA": state.adapters,
        "optimizer": state.moments,
        "running mean": state.mean,
    }
    for name, tree in parts.items():
        for leaf in jax.tree.leaves(tree):
            found[name, str(leaf.dtype)] += math.prod(leaf.shape)
    table = Table("part", "type", "numbers", "bytes", title="parameters")
    for (name, dtype), count in found.items():
        table.add_row(name, dtype, f"{count:,}", gb(count * np.dtype(dtype).itemsize))
    return table


def _memory(memory: Memory) -> Table:
    table = Table("on one device", "bytes", title="memory of a step")
    for name, count in dataclasses.asdict(memory).items():
        table.add_row(name, gb(count))
    table.add_row("total", gb(memory.total), style="bold")
    return table
