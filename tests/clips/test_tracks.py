"""Which tracks are the clip and its sound."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from helpers.clips import RATE, sound_packets

from justdubit_jax.clips.read import probe, read_audio, read_video
from justdubit_jax.clips.sound import read_sound


def tracks(
    path: Path, pictures: list[dict[str, Any]], sounds: list[dict[str, Any]] | None = None
) -> Path:
    """Tracks of flat grey pictures and of constant sound; a default mark where one says so."""
    with av.open(str(path), "w") as out:
        packets = []
        for picture in pictures:
            stream: Any = out.add_stream(picture.get("codec", "libx264"), rate=25)
            stream.height, stream.width = picture["size"]
            stream.pix_fmt = picture.get("pixels", "yuv420p")
            stream.disposition = picture.get("mark", Disposition(0))
            for index in [*range(picture.get("frames", 10)), None]:
                frame = None
                if index is not None:
                    grey = np.full((*picture["size"], 3), picture["grey"], np.uint8)
                    frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                    frame = frame.reformat(format=stream.pix_fmt)
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
        for sound in sounds or []:
            line = np.full((2, 2 * RATE // 5), sound["level"], np.float32)
            own = sound_packets(out, "pcm_s16le", line)
            own[0].stream.disposition = sound.get("mark", Disposition(0))
            packets += own
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


DEFAULT = Disposition.default
SMALL = {"size": (32, 48), "grey": 60}
LARGE = {"size": (64, 96), "grey": 180}
COVER = {"size": (96, 96), "grey": 230, "codec": "mjpeg", "pixels": "yuvj420p", "frames": 1}


@pytest.mark.parametrize(
    "pictures, grey",
    [
        ([SMALL, LARGE], 180),
        ([LARGE, SMALL], 180),
        ([LARGE, SMALL | {"mark": DEFAULT}], 60),
        ([SMALL | {"mark": DEFAULT}, LARGE | {"mark": DEFAULT}], 180),
        ([COVER, SMALL], 60),
        ([SMALL, COVER | {"mark": DEFAULT}], 60),
    ],
)
def test_the_clip_is_the_default_or_the_largest(tmp_path, pictures, grey):
    path = tracks(tmp_path / "a.mkv", pictures)
    clip = read_video(path)
    assert len(clip.frames) == 10 and abs(clip.frames.mean() - grey) < 3
    assert (probe(path).height, probe(path).width) == clip.frames.shape[1:3]
    assert clip.facts.track.endswith(f" of {len(pictures)}, h264")


@pytest.mark.parametrize("mark", [Disposition(0), Disposition.attached_pic])
def test_cover_art_is_not_the_clip(tmp_path, mark):
    path = tracks(tmp_path / "a.mp4", [SMALL, COVER | {"mark": mark}])
    assert abs(read_video(path).frames.mean() - 60) < 3


@pytest.mark.parametrize(
    "levels, marked, taken", [((0.2, 0.6), 1, 1), ((0.2, 0.6), 0, 0), ((0.2, 0.6), None, 0)]
)
def test_the_sound_is_the_default_track_or_the_first(tmp_path, levels, marked, taken):
    sounds = [
        {"level": level, "mark": DEFAULT if index == marked else Disposition(0)}
        for index, level in enumerate(levels)
    ]
    path = tracks(tmp_path / "a.mkv", [SMALL], sounds)
    assert read_audio(path, RATE, 0.2).mean() == pytest.approx(levels[taken], abs=1e-3)
    assert read_sound(path, RATE, 0.2).track == f"audio {taken + 1} of 2, pcm_s16le"
