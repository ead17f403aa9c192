"""What a run writes down of itself: metrics.jsonl, TensorBoard (and W&B), the progress display."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from justdubit_jax.devices import processes
from justdubit_jax.files import replacing
from justdubit_jax.runs.charts import loss_curve_png
from justdubit_jax.runs.display import Display
from justdubit_jax.runs.logs import EventLog, Log, WandbLog
from justdubit_jax.runs.output import RunFolder
from justdubit_jax.training.settings import Wandb

_NAMES = ("loss", "loss_video", "loss_audio", "grad_norm")

type Values = Mapping[str, SupportsFloat]  # what the step gives, by these names


def open_logs(folder: RunFolder, wandb: Wandb | None, resume_step: int, text: str) -> list[Log]:
    """TensorBoard event files, and W&B where it has options; `text` is the configuration.

    Only the first process logs.
    """
    if not processes.is_first():
        return []
    logs: list[Log] = [EventLog(folder.tensorboard, resume_step)]
    if wandb is not None:
        options = {"config": {"config": text}, "name": folder.path.name}
        logs.append(WandbLog(folder.wandb, **vars(wandb), **options))
    for log in logs:
        log.text(resume_step, "config", "\n".join(f"    {line}" for line in text.splitlines()))
    return logs


class NotFinite(Exception):
    """The loss or the gradient was not finite for too many steps in a row."""


class Metrics:
    """One JSON line a step; the same in the logs and the display.

    Values of step n are read when step n + 1 is under way, so the host never waits for the
    device. Lines beyond the step that a run continues from are dropped. `peak` is the devices'
    peak in FLOP/s, None where unknown.
    """

    def __init__(
        self,
        folder: RunFolder,
        step: int,
        rates: Mapping[str, Callable[[int], SupportsFloat]],
        display: Display,
        logs: Sequence[Log],
        peak: float | None,
    ):
        self._path, self._picture = folder.metrics, folder.loss_picture
        self._rates, self._display, self._logs, self._peak = rates, display, logs, peak
        self._records = [r for r in read_records(self._path) if r["step"] <= step]
        self._file = None
        if processes.is_first():
            with replacing(self._path) as temporary:
                temporary.write_text("".join(json.dumps(r) + "\n" for r in self._records))
            self._file = self._path.open("a")
        self._pending: tuple[int, Values, Sequence[str], float] | None = None
        self._clock = time.perf_counter()
        self._spoilt: list[str] = []  # the steps in a row that were not finite, and their files

    def add(self, step: int, values: Values, files: Sequence[str], flops: float) -> None:
        """Take the values of a step that is under way, and write the one before.

        `files` are its samples on this process, `flops` what the model needs for it. Raises
        NotFinite at the third step in a row that could not be applied.
        """
        self.flush()
        self._pending = step, values, files, flops

    def flush(self) -> None:
        """Write the step that is waiting, if any."""
        if self._pending is None:
            return
        step, values, files, flops = self._pending
        self._pending = None
        found = {name: float(values[name]) for name in _NAMES}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        numbers: dict[str, float | Mapping[str, float]] = {**found, "seconds": seconds}
        numbers["tflops"] = flops / seconds / 1e12
        if self._peak is not None:
            numbers["mfu"] = flops / seconds / self._peak
        numbers["learning_rate"] = {k: float(rate(step - 1)) for k, rate in self._rates.items()}
        spoilt = dict.fromkeys(name for name, value in found.items() if not math.isfinite(value))
        line = {"step": step, **numbers, **spoilt}  # None, as JSON has no NaN
        if self._file is not None:
            print(json.dumps(line), file=self._file, flush=True)
        self._records.append(line)
        for log in self._logs:
            log.scalars(step, numbers)
        self._display.train({"step": step, **numbers})
        self._watch(step, found, files)

    def _watch(self, step: int, found: Mapping[str, float], files: Sequence[str]) -> None:
        if all(map(math.isfinite, found.values())):
            self._spoilt.clear()
            return
        self._spoilt.append(f"step {step}: {', '.join(files)}")
        self._display.log(f"loss or gradient not finite, step not applied: {self._spoilt[-1]}")
        if len(self._spoilt) == 3:
            raise NotFinite("; ".join(self._spoilt))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Write what is waiting; what happens inside counts for no step's seconds."""
        self.flush()
        yield
        self._clock = time.perf_counter()

    def curve(self) -> None:
        """Draw the losses so far beside the samples."""
        if self._records and self._file is not None:
            loss_curve_png(self._picture, self._records)

    def close(self) -> None:
        """Write the step that is waiting, and release the files."""
        self.flush()
        self.release()

    def release(self) -> None:
        """Close the files and the logs as they are; also on the way out of an error."""
        if self._file is not None:
            self._file.close()
        for log in self._logs:
            log.close()
        self._logs = ()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last one that a kill cut off does not count."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
