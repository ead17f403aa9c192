"""The sound of a clip as numpy arrays, on the time line of its pictures."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio import AudioFrame, AudioStream
from jaxtyping import Float32

from justdubit_jax.clips.container import Opened, declared_end, decoded, opened, seconds
from justdubit_jax.clips.facts import Finding
from justdubit_jax.clips.frames import first_time
from justdubit_jax.clips.resample import resample
from justdubit_jax.clips.tracks import audio_track, track_name
from justdubit_jax.errors import InputError

_JITTER = 0.005  # s; stamps may be rounded, only what is further off is a gap
_NOTABLE = 0.1  # s of silence where the file has no sound
_SILENT = 10 ** (-70 / 20)  # peak, of full scale
_FULL, _CLIPPED = 0.99, 0.002  # a level, and the share of samples beyond it in sound that is cut


@dataclasses.dataclass(frozen=True)
class Sound:
    """Stereo sound of a clip's length in -1..1, how it was taken, and what is odd about it."""

    samples: Float32[np.ndarray, "2 n"]
    track: str
    layout: str  # of channels, as stored
    findings: tuple[Finding, ...]

    def metadata(self) -> dict[str, str]:
        """For a file that is made of the sound."""
        return {"sound_track": self.track, "sound_layout": self.layout}


def read_audio(
    path: str | Path, sample_rate: int, length: Fraction | float | int
) -> Float32[np.ndarray, "2 n"]:
    """The samples of `read_sound`, which see."""
    return read_sound(path, sample_rate, length).samples


def read_sound(
    path: str | Path,
    sample_rate: int,
    length: Fraction | float | int,
    start: Fraction | None = None,
) -> Sound:
    """The sound of a clip's first `length` seconds, stereo, in -1..1.

    It is cut at its own rate, to int(length * rate) samples, before it is brought to
    `sample_rate`, as in the reference. Sample 0 belongs to the first frame of the video, at `start`
    on the file's clock (None: looked up): sound that starts earlier is cut, later is preceded by
    silence; so is a gap. Mono is doubled, more channels are mixed down; the end is padded with
    silence. Raises InputError for files without sound or damaged.
    """
    path = Path(path)
    if start is None:
        start = first_time(path)
    with opened(path) as file:
        stream = audio_track(path, file.container)
        is_clip = start is not None
        origin = seconds(stream.start_time, stream.time_base) if start is None else float(start)
        line = _Line(file, stream, origin, length)
        declared = declared_end(stream, file.window(stream)) if is_clip else None
        if declared is not None and line.end < min(declared, origin + float(length)) - 0.1:
            raise InputError(
                f"{path}: its audio ends at {line.end:.2f} s instead of {declared:.2f} s"
            )
        name, layout = track_name(file.container, stream), stream.layout.name
    samples = resample(line.samples, line.rate, sample_rate)
    findings = tuple(Finding(path, *words) for words in line.oddities())
    return Sound(np.clip(samples, -1, 1), name, layout, findings)


class _Line:
    """Decoded samples on a time line from `origin` on, in seconds on the file's clock."""

    samples: Float32[np.ndarray, "2 n"]
    rate: int
    end: float  # where the sound ends, on the file's clock

    def __init__(
        self, file: Opened, stream: AudioStream, origin: float, length: Fraction | float | int
    ):
        self.origin, self.length, self._filled = origin, float(length), 0
        self._window, self.surround = file.window(stream), False
        samples, position = None, None
        for frame in decoded(file.path, file.container, stream):
            if samples is None:
                self.rate = frame.sample_rate
                samples = np.zeros((2, int(length * self.rate)), np.float32)
            if frame.sample_rate != self.rate:
                raise InputError(f"{file.path}: the rate of its audio changes at {frame.time} s")
            position = self._place(frame, position, samples)
            if position >= samples.shape[1]:
                break
        if samples is None or position is None:
            raise InputError(f"{file.path}: its audio stream is empty")
        self.samples, self.end = samples, origin + position / self.rate
        self._clipped = float(np.mean(np.abs(samples) >= _FULL))
        self._peak = float(np.abs(samples).max(initial=0))
        if self.surround and self._peak > 1:
            samples /= self._peak  # several channels add up; none of them was cut

    def _place(self, frame: AudioFrame, position: int | None, line: np.ndarray) -> int:
        """Put a frame where its stamp says, or behind the last one; returns where it ends."""
        begin = position
        if frame.time is not None or position is None:
            stamped = round(((frame.time or 0) - self.origin) * self.rate)
            if position is None or abs(stamped - position) > _JITTER * self.rate:
                begin = stamped
        assert begin is not None
        samples = _stereo(frame)
        self.surround |= frame.layout.nb_channels > 2
        low = min(max(begin, self._index(self._window.start), 0), line.shape[1])
        high = min(max(begin + samples.shape[1], 0), line.shape[1])
        if self._window.end is not None:
            high = max(min(high, self._index(self._window.end)), 0)
        if low < high:
            line[:, low:high] = samples[:, low - begin : high - begin]
            self._filled += high - low
        return begin + samples.shape[1]

    def _index(self, time: Fraction) -> int:
        return round((float(time) - self.origin) * self.rate)

    def oddities(self) -> list[tuple[str, str]]:
        """Kind and words of what a person should know."""
        found, missing = [], self.length - self._filled / self.rate
        short = self.origin + self.length - self.end
        if short > _NOTABLE:
            ends = max(self.length - short, 0)
            found.append(
                (
                    "sound-short",
                    f"its sound ends at {ends:.2f} s of {self.length:.2f} s, then silence",
                )
            )
        if missing - max(short, 0) > _NOTABLE:
            gap = missing - max(short, 0)
            found.append(("sound-gap", f"its sound is missing for {gap:.2f} s, silence instead"))
        if self._peak < _SILENT:
            found.append(("sound-silent", "its sound is silent"))
        elif self._clipped > _CLIPPED and not self.surround:
            share = 100 * self._clipped
            found.append(("sound-clipped", f"its sound is cut off at full scale ({share:.1f} %)"))
        return found


def _stereo(frame: AudioFrame) -> Float32[np.ndarray, "2 n"]:
    # FFmpeg turns mono into stereo at -3 dB, so mono is doubled here.
    mono = frame.layout.nb_channels == 1
    converter = av.AudioResampler(format="fltp", layout="mono" if mono else "stereo")
    parts = [*converter.resample(frame), *converter.resample(None)]
    samples = np.concatenate([part.to_ndarray() for part in parts], axis=1)
    return np.broadcast_to(samples, (2, samples.shape[1]))
