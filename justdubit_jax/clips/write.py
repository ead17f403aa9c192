"""Pictures and sound to .mp4 and .wav, whole or not at all."""

import itertools
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import Float, UInt8

from justdubit_jax.clips.formats import EXACT, audio_frame
from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.errors import InputError
from justdubit_jax.files import replacing


def write_video(
    path: str | Path,
    frames: UInt8[np.ndarray, "f y x 3"] | Iterator[UInt8[np.ndarray, "_f y x 3"]],
    fps: Fraction | float | int | str,
    audio: Float[np.ndarray, "c n"] | None = None,
    sample_rate: int = 48_000,
) -> None:
    """Write an .mp4 (H.264, AAC), whole or not at all; `audio` is mono or stereo in -1..1.

    `frames` may come in pieces, which are not kept. `fps` is taken by `exact_fps`. The sound is
    cut, or padded with silence, to the length of the picture. Raises InputError for odd sizes,
    which 4:2:0 cannot hold, and for what the encoders refuse.
    """
    path, fps = Path(path), exact_fps(fps)
    pieces = iter([frames]) if isinstance(frames, np.ndarray) else frames
    first = next(pieces)
    _, height, width, _ = first.shape
    pieces = itertools.chain(iter([first]), pieces)  # an iterator lets go of what it gave
    del first, frames
    if height % 2 or width % 2:
        raise InputError(f"{path}: {width}x{height} pixels; an .mp4 needs even sizes")
    with replacing(path) as temporary:
        try:
            with av.open(
                str(temporary.absolute()),
                "w",
                format="mp4",
                container_options={"movflags": "+faststart"},
            ) as container:
                # Streams exist before the first packet is muxed, so both are encoded first.
                packets, count = _encoded_frames(container, pieces, (height, width), fps)
                if audio is not None:
                    sound = _of_length(audio, round(count / fps * sample_rate))
                    packets += _encoded_sound(container, sound, sample_rate)
                container.mux(sorted(packets, key=_decoding_time))
        except FFmpegError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def write_wav(path: str | Path, audio: Float[np.ndarray, "c n"], sample_rate: int) -> None:
    """Write a 16-bit .wav, whole or not at all; `audio` is in -1..1."""
    with replacing(Path(path)) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(len(audio))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").T.tobytes())


def _encoded_frames(
    container: OutputContainer, pieces: Iterable[Any], size: tuple[int, int], fps: Fraction
) -> tuple[list[Packet], int]:
    """Packets, and of how many frames."""
    # Without cpu-independent x264 may write other bytes each time it is given the same frames.
    options = {"crf": "18", "x264-params": "cpu-independent=1"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
    stream.codec_context.colorspace = Colorspace.ITU709
    stream.codec_context.color_range = ColorRange.MPEG
    stream.codec_context.color_primaries = ColorPrimaries.BT709
    stream.codec_context.color_trc = ColorTrc.BT709
    packets, count = [], 0
    for array in itertools.chain.from_iterable(pieces):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(
            format="yuv420p",
            interpolation=EXACT,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = count, 1 / fps
        packets += stream.encode(frame)
        count += 1
        del array  # a view, which would hold the last piece while the next one is made
    return packets + stream.encode(None), count


def _of_length(audio: Float[np.ndarray, "c n"], count: int) -> Float[np.ndarray, "c m"]:
    missing = max(count - audio.shape[1], 0)
    return np.pad(audio[:, :count], ((0, 0), (0, missing)))


def _encoded_sound(
    container: OutputContainer, audio: Float[np.ndarray, "c n"], rate: int
) -> list[Packet]:
    frame = audio_frame(np.clip(audio, -1, 1), rate)
    stream = container.add_stream("aac", rate=rate, layout=frame.layout.name)
    stream.bit_rate = 96_000 * len(audio)
    chunks = av.AudioResampler(format="fltp", rate=rate, frame_size=1024)  # AAC's frame size
    packets = []
    for chunk in (*chunks.resample(frame), *chunks.resample(None)):
        packets += stream.encode(chunk)
    return packets + stream.encode(None)


def _decoding_time(packet: Packet) -> Fraction:
    return Fraction(packet.dts or 0) * packet.time_base
