"""Samples kept out of training, and their loss."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from justdubit_jax.data.samples import SampleFiles, group_by_shape
from justdubit_jax.devices import processes
from justdubit_jax.files import replacing
from justdubit_jax.lora import adapters as lora
from justdubit_jax.runs.logs import Log
from justdubit_jax.runs.output import Best, RunFolder, read_best, write_best
from justdubit_jax.training.prepare import Training
from justdubit_jax.validation.fixed_loss import FixedLoss


def split_holdout(
    samples: Sequence[SampleFiles], count: int, seed: int
) -> tuple[list[SampleFiles], list[SampleFiles]]:
    """(for training, held out): the same samples for the same seed and data set."""
    order = np.random.default_rng(seed).permutation(len(samples))
    held = set(order[:count].tolist())
    chosen = [s for i, s in enumerate(samples) if i in held]
    return [s for i, s in enumerate(samples) if i not in held], chosen


class Holdout:
    """The held-out loss: logged to OUTPUT/validation.jsonl, the best checkpoint in best.json.

    What the files say of steps beyond `first_step`, from which a run continues, is dropped. The
    first process writes them.
    """

    def __init__(
        self,
        training: Training,
        samples: Sequence[SampleFiles],
        first_step: int,
        logs: Sequence[Log],
    ):
        self._logs, self._folder = logs, RunFolder(training.run.output_dir)
        self._groups = group_by_shape(samples)
        self._loss = FixedLoss(
            training.objective, training.graphdef, training.layout, training.mesh
        )
        self._writes = processes.is_first()
        path = self._folder.validation
        lines = path.read_text().splitlines() if path.exists() else []
        records = [r for r in map(json.loads, lines) if r["step"] <= first_step]
        # Read once: the processes must agree on what is left to measure.
        self._known: dict[int, dict[str, float]] = {r["step"]: r for r in records}
        best = read_best(self._folder)
        if self._writes and best is not None and best.step > first_step:
            self._folder.best.unlink()

    def measure(self, step: int, weights: lora.Weights) -> dict[str, float]:
        """Measure, and append a line; a step that is already there is not measured again."""
        if step not in self._known:
            means = self._loss.mean(weights, self._groups)
            self._known[step] = {"step": step, **means}
            if self._writes:
                with replacing(self._folder.validation) as temporary:
                    records = (json.dumps(self._known[s]) + "\n" for s in sorted(self._known))
                    temporary.write_text("".join(records))
            for log in self._logs:
                log.scalars(step, {"held_out": means})
        return self._known[step]

    def name_best(self, record: dict[str, float], file: Path) -> None:
        """Keep the checkpoint of least loss in best.json."""
        best = read_best(self._folder)
        if self._writes and (best is None or record["loss"] < best.loss):
            write_best(self._folder, Best(int(record["step"]), record["loss"], file.name))
