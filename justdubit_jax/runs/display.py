"""What a person sees of a training run: progress, event files, charts and contact sheets."""

import contextlib
import html
import importlib
import math
import os
import statistics
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# Made by protobuf when they are imported, where pyright does not see them.
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from justdubit_jax.clips.pictures import frame_row
from justdubit_jax.clips.write import write_wav
from justdubit_jax.errors import InputError
from justdubit_jax.files import replacing


class EventLog:
    """TensorBoard event files in `folder`.

    A run that continues from step N writes a new file; what older files hold of later steps is
    removed from them, so that no step is there twice. At N = 0 nothing is kept.
    """

    def __init__(self, folder: Path, resume_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        first = resume_step + 1 if resume_step else 0
        older = sorted(folder.glob("events.out.tfevents.*"))
        for path in older:
            _drop_events(path, first)
        # The library's name has seconds and host only: a quick restart would overwrite.
        unique = f".{time.time_ns()}.{os.getpid()}"
        # Not its SummaryWriter, whose queue a kill would take along.
        self._file = EventsWriter(str(folder / "events"), unique)
        if older:  # tells a TensorBoard that has read them
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=first, session_log=start))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers; a mapping inside becomes tags "outer/inner"."""
        flat = _flat(values)
        self._write(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in flat])

    def images(self, step: int, tag: str, frames: UInt8[np.ndarray, "f y x 3"]) -> None:
        """A row of evenly spaced frames."""
        row = frame_row(frames, 8)
        self._write(step, summary.image(tag, row, dataformats="HWC").value)

    def audio(self, step: int, tag: str, sound: Float[np.ndarray, "c n"], rate: int) -> None:
        """Mono or stereo in -1..1, as 16-bit WAV."""
        # Not the library's own audio(), which wants libsndfile.
        with _wav_file(sound, rate) as path:
            audio = Summary.Audio(
                sample_rate=rate,
                num_channels=len(sound),
                length_frames=sound.shape[1],
                encoded_audio_string=path.read_bytes(),
                content_type="audio/wav",
            )
        self._write(step, [Summary.Value(tag=tag, audio=audio)])

    def video(self, step: int, tag: str, path: Path) -> None:
        """Nothing: TensorBoard plays no mp4; `images` and `audio` are shown."""

    def text(self, step: int, tag: str, text: str) -> None:
        """Markdown; four spaces before a line keep it as it is."""
        self._write(step, summary.text(tag, text).value)

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, values: Sequence[Any]) -> None:
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file.write_event(event)
        self._file.flush()


class WandbLog:
    """Weights & Biases, with the methods of EventLog; every start is a run of its own.

    Steps are the metric "step" of each entry, since W&B's own count cannot go back when a run
    continues from an older checkpoint. The starts of one `name` form a group.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        entity: str | None,
        tags: Sequence[str],
        log_validation_videos: bool,
        config: Mapping[str, Any],
        name: str,
    ):
        try:
            wandb = importlib.import_module("wandb")
        except ImportError:
            raise InputError(
                "config: wandb.enabled: wandb is not installed; "
                "expected the extra `wandb`: pip install 'justdubit-jax[wandb]'"
            ) from None
        self._wandb, self._videos = wandb, log_validation_videos
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run: Any = wandb.init(
                dir=str(folder),
                project=project,
                entity=entity,
                tags=list(tags),
                config=dict(config),
                name=name,
                group=name,
            )
        except wandb.Error as error:
            raise InputError(f"config: wandb: {' '.join(str(error).split())}") from None
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self._log(step, dict(_flat(values)))

    def images(self, step: int, tag: str, frames: UInt8[np.ndarray, "f y x 3"]) -> None:
        self._log(step, {tag: self._wandb.Image(frame_row(frames, 8))})

    def audio(self, step: int, tag: str, sound: Float[np.ndarray, "c n"], rate: int) -> None:
        with _wav_file(sound, rate) as path:
            self._log(step, {tag: self._wandb.Audio(str(path))})  # copied when logged

    def video(self, step: int, tag: str, path: Path) -> None:
        """The mp4, if `log_validation_videos`."""
        if self._videos:
            self._log(step, {tag: self._wandb.Video(str(path), format="mp4")})

    def text(self, step: int, tag: str, text: str) -> None:
        self._log(step, {tag: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, entry: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **entry})


@contextlib.contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` are done, as it is told: a bar in a terminal, lines elsewhere."""
    plain = not console.is_interactive
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)
    with Progress(*columns, MofNCompleteColumn(), console=console, disable=plain) as progress:
        task = progress.add_task(what, total=total)

        def tell(done: int) -> None:
            progress.update(task, completed=done)
            if plain:
                console.print(f"{what} {done}/{total}", markup=False, highlight=False)

        yield tell


@runtime_checkable
class Report(Protocol):
    """Says what the sampling of a prompt is at; `prompt` counts from 1."""

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
        """Show the samples of a validation while the block lasts, as told to the report."""
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


def loss_curve_png(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Chart the losses of metrics.jsonl over steps: each step pale, a running mean on top."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot(
        xlabel="step", ylabel="flow-matching loss (mean squared error)", title="Training loss"
    )
    steps = np.array([record["step"] for record in records])
    window = max(1, len(records) // 20)
    for name, colour in (("loss", "black"), ("loss_video", "C0"), ("loss_audio", "C1")):
        values = np.array([record[name] for record in records], np.float64)
        lonely = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        label = name if window == 1 else f"{name}, mean of {window} steps"
        axes.plot(steps, _running_mean(values, window), color=colour, label=label, marker=lonely)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _running_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Mean of the last `window` finite values, of fewer at the start; nan where there is none."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite).astype(np.float64)
    for totals in (sums, counts):
        totals[window:] -= totals[:-window].copy()
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", float(value)


@contextlib.contextmanager
def _wav_file(sound: Float[np.ndarray, "c n"], rate: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.wav"
        write_wav(path, sound, rate)
        yield path


def _drop_events(path: Path, first: int) -> None:
    """Remove the summaries of step `first` and later, and a record cut off by a kill."""
    content, kept, at = path.read_bytes(), [], 0
    # A record: length, its checksum, the event, its checksum (TensorFlow's TFRecord).
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            break
        event = Event.FromString(content[at + 12 : end - 4])
        if event.step < first or not event.HasField("summary"):
            kept.append(content[at:end])
        at = end
    if len(rest := b"".join(kept)) != len(content):
        with replacing(path) as temporary:
            temporary.write_bytes(rest)
