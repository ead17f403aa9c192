"""The training step on random weights and a random batch, and the torch trainer's beside it."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
from benchmarks import size as sizes
from benchmarks.size import REPO, Size

from justdubit_jax.devices import sharding
from justdubit_jax.errors import InputError
from justdubit_jax.lora import adapters as lora
from justdubit_jax.planning import flops
from justdubit_jax.planning.cards import Card, card_of
from justdubit_jax.planning.estimate import Estimate, estimate
from justdubit_jax.planning.memory import compile_step, device_memory, sample_flops
from justdubit_jax.planning.remat import keeping_what_fits
from justdubit_jax.training.optimizer import KINDS
from justdubit_jax.training.prepare import first_state, place_batch, prepare_training
from justdubit_jax.weights import keys
from justdubit_jax.weights.load import random_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes.add_arguments(parser)
    add = parser.add_argument
    add("--remat", choices=tuple(_REMAT), default="auto", help="what the backward pass recomputes")
    add("--quantization", help="of the frozen weights: int8, fp8, nf4")
    add("--optimizer", choices=KINDS, default="adamw")
    add("--peer", choices=("torch",), help="the torch trainer's step too, in turns with ours")
    add("--peer-python", default=sys.executable, help="an interpreter with ltx-core and peft")


# --remat -> optimization.enable_gradient_checkpointing
_REMAT = {"auto": "auto", "full": True, "none": False} | {
    name: name for name in ("attention", "keys", "queries", "offload")
}


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Time our step, and the peer's in turns with it. Only one computes at a time."""
    if args.peer:  # the card is shared; this is read when the first array is made
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    size = sizes.read_size(args)
    with contextlib.ExitStack() as stack:
        remat = args.remat != "none"
        peer = stack.enter_context(Peer(args.peer_python, size, remat)) if args.peer else None
        ours_step = Step(size, Options(args.remat, args.quantization, args.optimizer))
        turns = [ours_step.run] + ([peer.run] if peer else [])
        for run in 2 * turns:  # not timed: first runs allocate, and choose among algorithms
            run()
        times = [[run() for run in turns] for _ in range(args.runs)]
    ours, *theirs = (statistics.median(column) for column in zip(*times, strict=True))
    work = sample_flops(ours_step.training, size.shape)
    card = card_of(jax.devices()[0].device_kind)
    expected = ours_step.estimate(card).seconds if card else None
    rate = size.batch * work.model / ours
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    memory, source = ours_step.memory()
    result = {
        "size": dataclasses.asdict(size),
        "remat": ours_step.training.objective.execution.remat,
        "quantization": ours_step.settings.quantization,
        "optimizer": args.optimizer,
        "compile_seconds": ours_step.compile_seconds,
        "step_seconds": ours,
        "estimated_seconds": expected,
        "step_seconds_all": [row[0] for row in times],
        "model_tflop": size.batch * work.model / 1e12,
        "tflop_with_recompute": size.batch * work.total / 1e12,
        "tflop_per_second": rate / 1e12,
        "mfu": rate / peak if peak else None,
        "peak_memory_gb": memory / 1e9,
        "peak_memory_source": source,
        "loss": ours_step.metrics["loss"],
    }
    if peer:
        result |= {
            "peer": peer.about,
            "peer_step_seconds": theirs[0],
            "peer_step_seconds_all": [row[1] for row in times],
            "peer_peak_memory_gb": peer.peak_bytes / 1e9,
            "ours_over_peer": ours / theirs[0],
        }
    return result


class Options(NamedTuple):
    """Of a step: what is recomputed, a scheme of the frozen weights, the optimizer, devices that
    share one copy."""

    remat: str = "auto"
    quantization: str | None = None
    optimizer: str = "adamw"
    fsdp: int = 1


class Step:
    """The jitted step that training runs, compiled for a size, with its state and a batch."""

    def __init__(self, size: Size, options: Options):
        self.settings = run = size.settings(
            {
                "optimization.enable_gradient_checkpointing": _REMAT[options.remat],
                "optimization.optimizer_type": options.optimizer,
                "acceleration.quantization": options.quantization,
                "mesh.fsdp": options.fsdp,
            }
        )
        mesh = sharding.make_mesh(*run.mesh)
        start = time.perf_counter()
        training, program = prepare_training(run, size.config, mesh), None
        if run.remat is None:
            training, program = keeping_what_fits(training, size.shape, device_memory())
        self.training = training
        self.program = program or compile_step(training, size.shape)
        self.compile_seconds = time.perf_counter() - start
        model, _ = lora.adapted_model(training.config, run.lora)
        place = functools.partial(sharding.weight, mesh)
        key = jax.random.key(0)
        loaded = random_weights(keys.TRANSFORMER, model, key, run.dtype, place, run.quantization)
        self._frozen = lora.split(loaded)[2]
        self._state = first_state(training)
        samples = size.batch * mesh.size
        batch = sizes.random_batch(dataclasses.replace(size, batch=samples))
        self._batch = place_batch(training, batch)
        jax.block_until_ready((self._state, self._frozen, self._batch))
        self.metrics: dict[str, float] = {}

    def run(self) -> float:
        """Seconds of one step, until all of its results are there."""
        start = time.perf_counter()
        self._state, metrics = self.program.run(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - start
        self.metrics = {name: float(value) for name, value in metrics.items()}
        return seconds

    def run_in_a_row(self, count: int) -> float:
        """Seconds a step of so many as training runs them: one is under way before the values of
        the one before are read."""
        start, before = time.perf_counter(), None
        for _ in range(count):
            self._state, metrics = self.program.run(self._state, self._frozen, self._batch)
            if before is not None:
                jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready((self._state, before))
        return (time.perf_counter() - start) / count

    def memory(self) -> tuple[float, str]:
        """Peak bytes and who says so: the device, XLA's plan of the step, or the process."""
        if (peak := sizes.device_peak()) is not None:
            return peak, "device"
        return self.program.plan.memory.total, "XLA's plan"

    def estimate(self, card: Card) -> Estimate:
        """What the planner takes the compiled step for on a card."""
        return estimate(self.program.run.as_text() or "", card, self.training.mesh.size)


class Peer:
    """torch_peer.py in a process of its own, which computes only when it is asked to."""

    def __init__(self, python: str, size: Size, remat: bool):
        self._python = python
        try:
            self._process = subprocess.Popen(
                [python, str(REPO / "tools/benchmarks/torch_peer.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise InputError(f"--peer-python {python}: {error.strerror}") from None
        names, positions = ("video", "audio"), size.positions
        request = dataclasses.asdict(size) | {
            "config": size.config,
            "targets": list(size.settings().lora.target_modules),
            "remat": remat,
            "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
            "threads": len(os.sched_getaffinity(0)),
            "positions": {n: p.tolist() for n, p in zip(names, positions, strict=True)},
        }
        self.about = self._ask(request)
        self.peak_bytes = 0

    def run(self) -> float:
        """Seconds of one step."""
        answer = self._ask({})
        self.peak_bytes = answer["peak_bytes"]
        return answer["seconds"]

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # one that has ended says why
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in answer:
            self._end()
            raise InputError(f"--peer-python {self._python}: {answer['error']}")
        return answer
