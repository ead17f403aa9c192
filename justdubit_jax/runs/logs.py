"""Event files for TensorBoard, and Weights & Biases."""

import contextlib
import html
import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from grain.experimental import TFRecordIterDataset
from jaxtyping import Float, UInt8
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

type Numbers = Mapping[str, float | Mapping[str, float]]


@runtime_checkable
class Log(Protocol):
    """Where a run is recorded beside its own files: TensorBoard, Weights & Biases."""

    def scalars(self, step: int, values: Numbers) -> None:
        """Numbers; a mapping inside becomes tags "outer/inner"."""
        ...

    def images(self, step: int, tag: str, frames: UInt8[np.ndarray, "f y x 3"]) -> None:
        """A row of evenly spaced frames."""
        ...

    def audio(self, step: int, tag: str, sound: Float[np.ndarray, "c n"], rate: int) -> None:
        """Mono or stereo in -1..1."""
        ...

    def video(self, step: int, tag: str, path: Path) -> None:
        """An mp4."""
        ...

    def text(self, step: int, tag: str, text: str) -> None:
        """Markdown; four spaces before a line keep it as it is."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


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

    def scalars(self, step: int, values: Numbers) -> None:
        flat = _flat(values)
        self._write(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in flat])

    def images(self, step: int, tag: str, frames: UInt8[np.ndarray, "f y x 3"]) -> None:
        row = frame_row(frames, 8)
        self._write(step, summary.image(tag, row, dataformats="HWC").value)

    def audio(self, step: int, tag: str, sound: Float[np.ndarray, "c n"], rate: int) -> None:
        """As 16-bit WAV."""
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
        self._write(step, summary.text(tag, text).value)

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, values: Sequence[Any]) -> None:
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file.write_event(event)
        self._file.flush()


class WandbLog:
    """Weights & Biases; every start is a run of its own.

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
        config: Mapping[str, object],
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

    def scalars(self, step: int, values: Numbers) -> None:
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

    def _log(self, step: int, entry: Mapping[str, object]) -> None:
        self._run.log({"step": step, **entry})


def _flat(values: Numbers, prefix: str = "") -> Iterator[tuple[str, float]]:
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
    content, kept, start = path.read_bytes(), [], 0
    records = iter(TFRecordIterDataset[bytes](str(path)))
    with contextlib.suppress(ValueError):  # that of a record cut off
        for record in records:
            end = records.get_state()["reader_offset"]
            event = Event.FromString(record)
            if event.step < first or not event.HasField("summary"):
                kept.append(content[start:end])
            start = end
    if len(rest := b"".join(kept)) != len(content):
        with replacing(path) as temporary:
            temporary.write_bytes(rest)
