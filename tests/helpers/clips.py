"""Clips made for a test: pictures that tell their place, sounds that tell their time, any file."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 48_000


def moving_bars(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame k is gray 20 + 8 k (so its place is read off its mean) with smooth colour on top."""
    k, y, x = np.mgrid[:frames, :height, :width]
    gray = 20 + 8 * k
    wave_ = 10 * np.sin(2 * np.pi * x / 32) * np.cos(2 * np.pi * y / 48)
    return np.stack([gray + wave_, gray - wave_, gray], -1).round().astype(np.uint8)


def click(seconds: float, at: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    sound = np.zeros((channels, round(seconds * rate)), np.float32)
    sound[:, round(at * rate)] = 0.9
    return sound


def pictures(frames: np.ndarray, fps: Fraction, start: float) -> Iterator[av.VideoFrame]:
    for index, array in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.pts, frame.time_base = index + round(start * fps), 1 / fps
        yield frame


def mux(
    path: Path,
    frames: np.ndarray | None,
    sound: np.ndarray | None = None,
    *,
    video: str = "libx264",
    audio: str = "aac",
    pixels: str = "yuv420p",
    layout: str = "stereo",
    rate: int = RATE,
    fps: Fraction = Fraction(25),
    starts: tuple[float, float] = (0, 0),
) -> Path:
    """Any container, codec and start times (video, audio), straight through PyAV."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []  # of one kind and the other
        if frames is not None:
            streams += [(container.add_stream(video, rate=fps), pictures(frames, fps, starts[0]))]
            v = streams[0][0]
            v.height, v.width, v.pix_fmt = *frames.shape[1:3], pixels
        if sound is not None:
            a: Any = container.add_stream(audio, rate=rate, layout=layout)
            size = a.codec_context.frame_size or 1024
            cut = av.AudioResampler(format=a.format, layout=layout, rate=rate, frame_size=size)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(starts[1] * rate)
            streams += [(a, [*cut.resample(frame), *cut.resample(None)])]
        packets = [p for s, chunks in streams for chunk in (*chunks, None) for p in s.encode(chunk)]
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path
