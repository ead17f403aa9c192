"""What a run writes down of itself: metrics.jsonl, TensorBoard (and W&B), the progress display."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from justdubit_jax import report
from justdubit_jax.files import replacing
from justdubit_jax.settings import Settings

_NAMES = ("loss", "loss_video", "loss_audio", "grad_norm")


def open_logs(run: Settings, resume_step: int, text: str) -> list[Any]:
    """TensorBoard event files, and W&B where it is on; `text` is the configuration."""
    logs: list[Any] = [report.EventLog(run.output_dir / "tensorboard", resume_step)]
    if run.wandb is not None:
        options = {"config": {"config": text}, "name": run.output_dir.name}
        logs.append(report.WandbLog(run.output_dir / "wandb", **run.wandb, **options))
    for log in logs:
        log.text(resume_step, "config", "\n".join(f"    {line}" for line in text.splitlines()))
    return logs


class Metrics:
    """One JSON line a step; the same in the logs and the display.

    Values of step n are read when step n + 1 is under way, so the host never waits for the
    device. Lines beyond the step that a run continues from are dropped.
    """

    def __init__(
        self,
        run: Settings,
        step: int,
        rates: Mapping[str, Callable[[int], Any]],
        display: report.Display,
        logs: Sequence[Any],
    ):
        self._path = run.output_dir / "metrics.jsonl"
        self._rates, self._display, self._logs = rates, display, logs
        self._records = [r for r in _records(self._path) if r["step"] <= step]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in self._records))
        self._file = self._path.open("a")
        self._pending: tuple[int, Any] | None = None
        self._clock = time.perf_counter()

    def add(self, step: int, values: Any) -> None:
        """Take the values of a step that is under way, and write the one before."""
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Write the step that is waiting, if any."""
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        record: dict[str, Any] = {"step": step, **{name: float(values[name]) for name in _NAMES}}
        now = time.perf_counter()
        record["seconds"], self._clock = now - self._clock, now
        record["learning_rate"] = {k: float(rate(step - 1)) for k, rate in self._rates.items()}
        print(json.dumps(record), file=self._file, flush=True)
        self._records.append(record)
        for log in self._logs:
            log.scalars(step, {k: v for k, v in record.items() if k != "step"})
        self._display.train(record)

    @contextlib.contextmanager
    def pause(self):
        """Write what is waiting; what happens inside counts for no step's seconds."""
        self.flush()
        yield
        self._clock = time.perf_counter()

    def curve(self) -> None:
        """Draw the losses so far beside the samples."""
        if self._records:
            report.loss_curve_png(self._path.parent / "samples" / "loss.png", self._records)

    def close(self) -> None:
        self.flush()
        self._file.close()
        for log in self._logs:
            log.close()


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
