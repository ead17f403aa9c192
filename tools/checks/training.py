"""The default step on random weights: its time, memory and kernels beside the planner's."""

import dataclasses
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from benchmarks.size import Size
from benchmarks.step import Options, Step
from checks.profile import Run, profiled
from checks.result import Row

from justdubit_jax.devices import sharding
from justdubit_jax.planning.cards import Card, card_of, read_card
from justdubit_jax.planning.estimate import Estimate
from justdubit_jax.planning.memory import device_memory, least_bytes, sample_flops
from justdubit_jax.training.prepare import prepare_training

# The published model and sample, see README; a toy of them on a CPU.
REAL = Size(48, 4096, 7040, 242, 1024, rank=128, batch=1, dtype="bfloat16", isolate=True)
TOY = Size(2, 128, 32, 10, 16, rank=4, batch=1, dtype="float32", isolate=True)
# How many blocks are tried, the most first, and what of the memory the arrays by themselves may
# take where everything else is recomputed.
_LAYERS, _SHARE = (48, 40, 32, 24, 16, 8, 4, 2, 1), 0.8
# How far the gradient's norm may be from that with a base in bfloat16. The loss of random weights
# says nothing: what they predict is small beside what they should.
_QUANTIZED = {"int8": 0.01, "fp8": 0.01, "nf4": 0.05}
# Norms of one device and of several: rounding of bfloat16, in another order.
_DIVIDED = 1e-2


def step(small: bool, runs: int, kernels_file: Path | None) -> Iterator[Row]:
    """The default step of as many blocks as fit."""
    size = TOY if small else largest_that_fits()
    made = Step(size, Options())
    yield Row("blocks", str(size.layers))
    yield Row("kept of the blocks", made.training.objective.execution.remat)
    yield Row("compiled in", made.compile_seconds, "s")
    yield Row("first step in", made.run(), "s")
    made.run()
    card = card_of(jax.devices()[0].device_kind)
    estimate = made.estimate(card or read_card("h100-sxm"))
    seconds = statistics.median(made.run() for _ in range(runs))
    expected = estimate.seconds if card else None
    yield Row("seconds a step", seconds, "s", expected=expected, note=f"median of {runs}")
    in_a_row = made.run_in_a_row(runs)
    yield Row("seconds a step in a row, as in training", in_a_row, "s", expected=expected)
    plan = made.program.plan
    memory, source = made.memory()
    yield Row(f"peak memory by the {source}", memory / 1e9, "GB", expected=plan.memory.total / 1e9)
    if card:
        model = sample_flops(made.training, size.shape).model
        yield Row("MFU", 100 * model / seconds / card.peak_bf16, "%")
    loss, norm = made.metrics["loss"], made.metrics["grad_norm"]
    yield Row(
        "losses and norms that are no numbers", float(np.isnan([loss, norm]).sum()), limit=0.0
    )
    seen = profiled(made.run)
    if kernels_file is not None:
        table = [run._asdict() for run in seen], [dataclasses.asdict(k) for k in estimate.kernels]
        kernels_file.write_text(json.dumps(table))
    yield from by_kind(seen, estimate, card)


def by_kind(seen: list[Run], estimate: Estimate, card: Card | None) -> Iterator[Row]:
    """Milliseconds by kinds of kernels, the planner's beside them."""
    kinds = {kernel.name: kernel.kind for kernel in estimate.kernels}
    measured: dict[str, float] = defaultdict(float)
    for run in seen:
        measured[kinds.get(run.instruction) or kind_of(run.name)] += run.seconds
    for share in estimate.by_kind():
        if share.what in measured:
            expected = 1e3 * share.seconds if card else None
            yield Row(share.what, 1e3 * measured.pop(share.what), "ms a step", expected=expected)
    for name, seconds in measured.items():
        yield Row(name, 1e3 * seconds, "ms a step")


# Of kernels in a command buffer the profiler tells no instruction. The planner's kinds by the names
# that the libraries and XLA give to kernels, the first that is found.
_NAMES = (
    ("attention backward", r"bprop|cudnn::fusion::"),
    ("attention", r"sdpa"),
    ("product (not cuBLAS)", r"^gemm_fusion"),
    ("product", r"^nvjet|gemm|cutlass|splitK"),
    ("async copy", r"^memcpy"),
    ("convolution", r"conv(?!ert)|fprop|dgrad"),
    ("fusion", r"fusion|wrapped|^loop|^input"),
)


def kind_of(name: str) -> str:
    """The planner's kind of a kernel by its name."""
    return next((kind for kind, words in _NAMES if re.search(words, name)), "other kernels")


def largest_that_fits() -> Size:
    """The published model, with fewer blocks where the device's memory wants it."""
    limit = device_memory()
    for layers in _LAYERS:
        size = dataclasses.replace(REAL, layers=layers)
        run = size.settings({"optimization.enable_gradient_checkpointing": True})
        training = prepare_training(run, size.config, sharding.make_mesh(*run.mesh))
        if limit is None or least_bytes(training, size.shape) < _SHARE * limit:
            return size
    raise MemoryError("not one block of the published width fits")


def quantized(small: bool, runs: int) -> Iterator[Row]:
    """A step of two blocks with each scheme of the frozen weights."""
    size = TOY if small else dataclasses.replace(REAL, layers=2)
    plain, seconds = _norm_and_seconds(size, Options("full"), runs)
    yield Row("seconds a step of two blocks, as they are", seconds, "s")
    for scheme, limit in _QUANTIZED.items():
        norm, seconds = _norm_and_seconds(size, Options("full", scheme), runs)
        yield Row(f"seconds a step of two blocks, {scheme}", seconds, "s")
        what = f"norm of the gradient with {scheme}, relative difference"
        yield Row(what, abs(norm / plain - 1), limit=limit)
    _, seconds = _norm_and_seconds(size, Options("full", None, "adamw8bit"), runs)
    yield Row("seconds a step of two blocks, adamw8bit", seconds, "s")


def divided(small: bool, runs: int) -> Iterator[Row]:
    """With several devices: one copy of the weights for all, and the gradient as on one."""
    count = jax.device_count()
    if count == 1:
        yield Row("devices", "one, nothing to divide")
        return
    size = TOY if small else dataclasses.replace(REAL, layers=2)
    together = dataclasses.replace(size, batch=count)
    plain, _ = _norm_and_seconds(together, Options("full"), runs)
    norm, seconds = _norm_and_seconds(size, Options("full", fsdp=count), runs)
    yield Row(f"seconds a step of two blocks, fsdp={count}", seconds, "s")
    what = "norm of the gradient, relative difference"
    yield Row(what, abs(norm / plain - 1), limit=_DIVIDED)


def _norm_and_seconds(size: Size, options: Options, runs: int) -> tuple[float, float]:
    """The gradient's norm of the first step, and the median of the seconds of the later ones."""
    made = Step(size, options)
    made.run()
    norm = made.metrics["grad_norm"]
    return norm, statistics.median(made.run() for _ in range(runs))
