"""Clips made for a test: pictures that tell their place, sounds that tell their time, any file."""

from collections.abc import Callable, Iterator, Mapping
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
    change: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Any container, codec and start times (video, audio), straight through PyAV.

    `change` is given the video stream before it is opened.
    """
    with av.open(str(path), "w") as container:
        streams: list[Any] = []  # of one kind and the other
        if frames is not None:
            streams += [(container.add_stream(video, rate=fps), pictures(frames, fps, starts[0]))]
            v = streams[0][0]
            v.height, v.width, v.pix_fmt = *frames.shape[1:3], pixels
            change(v)
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


def flash_and_click(
    path: Path,
    *,
    frames: int = 50,
    flash: int = 30,
    fps: Fraction | int = 25,
    video: str = "libx264",
    audio: str | None = "aac",
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container: str | None = None,
    keep: Callable[[int], bool] = lambda index: True,
    keep_sound: Callable[[float], bool] = lambda time: True,
    stamp: Callable[[int], int] = lambda index: index,
    clock: Fraction | int | None = None,
    size: tuple[int, int] = (64, 64),
    change: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """A clip whose picture is white at one frame, when its sound clicks.

    `keep` says which packets of the picture are written and `keep_sound` which of the sound, by
    their time; frame k has the stamp `stamp(k)` in units of 1 / `clock` (default: fps).
    """
    clock = Fraction(clock or fps)
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(video, rate=clock, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        change(stream)
        packets: list[Any] = []
        for index in [*range(frames), None]:
            frame = None
            if index is not None:
                picture = np.full((*size, 3), 60, np.uint8)
                picture[:, : 4 + 2 * (index % 24)] = 90  # every frame differs from the last
                if index == flash:
                    picture[:] = 235
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = stamp(index), 1 / clock
            packets += stream.encode(frame)
        packets = [packet for index, packet in enumerate(packets) if keep(index)]
        if audio:
            line = click(frames / float(fps), flash / float(fps))
            packets += [
                p for p in sound_packets(out, audio, line) if keep_sound(float(p.pts) / RATE)
            ]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def sound_packets(out: Any, codec: str, line: np.ndarray, layout: str = "stereo") -> list[Any]:
    """A track of a container that is being written, and its packets."""
    stream: Any = out.add_stream(codec, rate=RATE, layout=layout)
    size = stream.codec_context.frame_size or 1024
    cut = av.AudioResampler(format=stream.format, layout=layout, rate=RATE, frame_size=size)
    frame = av.AudioFrame.from_ndarray(line.astype(np.float32), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    chunks = [*cut.resample(frame), *cut.resample(None)]
    return [packet for chunk in (*chunks, None) for packet in stream.encode(chunk)]


def apart(clip: Any, sound: np.ndarray, rate: int = 16_000) -> float:
    """By how many seconds the click comes after the flash."""
    flash = int(clip.frames.mean((1, 2, 3)).argmax()) / clip.fps
    return float(np.abs(sound).max(0).argmax() / rate - flash)
