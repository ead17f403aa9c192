"""What a person sees of a training run in the terminal."""

import contextlib
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column


@runtime_checkable
class Report(Protocol):
    """Tells which stage a sample has come to; `prompt` counts from 1."""

    def __call__(
        self, prompt: int, text: str, stage: str, done: int = 0, total: int | None = None
    ) -> None: ...


class Display:
    """Progress bars in a terminal, plain lines elsewhere; `with Display(console, steps): ...`."""

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        self._plain = not console.is_interactive
        self._seconds: deque[float] = deque(maxlen=20)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            # Wraps where the terminal is narrow. Prompts may hold [brackets], hence no markup.
            TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
            console=console,
            disable=self._plain,
        )
        self._training: TaskID | None = None

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def log(self, text: str) -> None:
        """A line that stays, above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def train(self, record: Mapping[str, Any]) -> None:
        """A step is done; `record` is its line of metrics.jsonl."""
        step = record["step"]
        self._seconds.append(record["seconds"])
        # The median: a step that compiled or waited for samples says nothing of the rest.
        left = int((self._steps - step) * statistics.median(self._seconds))
        mfu = f"{record['mfu']:.0%}" if "mfu" in record else "n/a"
        note = (
            f"loss {record['loss']:.4f} "
            f"(video {record['loss_video']:.4f}, audio {record['loss_audio']:.4f})  "
            f"lr {record['learning_rate']['default']:.2e}  {record['seconds']:.2f} s/step  "
            f"{record['tflops']:.3g} TFLOP/s (MFU {mfu})  "
            f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left"
        )
        if self._plain:
            self.log(f"step {step}/{self._steps}  {note}")
        elif self._training is None:
            self._training = self._progress.add_task(
                "training", total=self._steps, completed=step, note=note
            )
        else:
            self._progress.update(self._training, completed=step, note=note)

    @contextlib.contextmanager
    def sampling(self, step: int, prompts: int) -> Iterator[Report]:
        """Show a validation's samples while the block lasts, and where they are by the report."""
        task: TaskID | None = None
        shown: tuple[int, str] | None = None

        def clear() -> None:
            if task is not None:
                self._progress.remove_task(task)

        def report(
            prompt: int, text: str, stage: str, done: int = 0, total: int | None = None
        ) -> None:
            nonlocal task, shown
            if shown == (prompt, stage) and task is not None:
                self._progress.update(task, completed=done)
                return
            clear()
            shown, where = (prompt, stage), f"sample {prompt}/{prompts}"
            text = " ".join(text.split())
            text = text if len(text) <= 60 else f"{text[:59]}…"
            task = self._progress.add_task(
                where, total=total, completed=done, note=f"{stage}  {text}"
            )
            if self._plain:
                self.log(f"step {step}/{self._steps}  {where}  {stage}  {text}")

        try:
            yield report
        finally:
            clear()
