"""Clips and sounds written, and read back by PyAV or by our own reader."""

import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.clips import RATE, click, moving_bars

from justdubit_jax.clips.read import probe, read_audio, read_video
from justdubit_jax.clips.write import write_video, write_wav
from justdubit_jax.errors import InputError


def test_video_round_trip(written):
    clip = read_video(written)
    assert clip.fps == Fraction(30000, 1001)
    assert clip.seconds == Fraction(25 * 1001, 30000)
    # CRF 18 and 4:2:0 cost smooth pictures about a level on average.
    difference = np.abs(clip.frames.astype(int) - moving_bars(25))
    assert difference.mean() < 1.5 and difference.max() <= 12
    found = probe(written)
    assert (found.frames, found.fps, found.height, found.width) == (25, clip.fps, 48, 64)
    assert found.has_audio and found.seconds == pytest.approx(25 * 1001 / 30000)


def test_written_for_streaming_and_tagged(written):
    data = written.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(written)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
        assert context.pix_fmt == "yuv420p"


def test_the_same_clip_is_the_same_file(tmp_path, written):
    for index in range(4):
        path = tmp_path / f"{index}.mp4"
        write_video(path, moving_bars(25), Fraction(30000, 1001), click(25 / 30, 0.5), RATE)
        assert path.read_bytes() == written.read_bytes()


@pytest.mark.parametrize("color", [(200, 40, 90), (10, 250, 10), (30, 60, 220), (255, 255, 255)])
def test_colours_survive(tmp_path, color):
    frames = np.full((2, 32, 32, 3), color, np.uint8)
    write_video(tmp_path / "flat.mp4", frames, 25)
    got = read_video(tmp_path / "flat.mp4").frames
    assert np.abs(got.astype(int) - frames).max() <= 2  # 8-bit limited-range YUV


def test_left_stays_left_and_as_loud_as_it_was(tmp_path):
    t = np.arange(RATE) / RATE
    sound = np.stack([0.5 * np.sin(880 * np.pi * t), 0.1 * np.sin(1400 * np.pi * t)])
    write_video(tmp_path / "a.mp4", moving_bars(25), 25, sound.astype(np.float32), RATE)
    got = read_audio(tmp_path / "a.mp4", RATE, 1)
    difference = np.linalg.norm(got - sound, axis=1) / np.linalg.norm(sound, axis=1)
    assert (difference < 0.1).all()  # of AAC


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_sound_and_picture_stay_together(tmp_path, rate):
    """A white frame and a click at the same instants of 20 s at 29.97 frames per second."""
    path, fps = tmp_path / "a.mp4", Fraction(30000, 1001)
    flashes = [29, 151, 301, 449, 571]  # at about 1, 5, 10, 15 and 19 s
    frames = np.full((600, 32, 32, 3), 40, np.uint8)
    frames[flashes] = 255
    sound = np.zeros((2, 20 * rate), np.float32)
    sound[:, [round(k / fps * rate) for k in flashes]] = 0.9
    write_video(path, frames, "29.97", sound, rate)

    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.average_rate, video.frames, audio.rate) == (fps, 600, rate)
        lengths = [float(s.duration * s.time_base) for s in (video, audio)]
        # Exact up to the sound's last sample; an audio frame has 1024.
        assert np.abs(np.subtract(lengths, float(600 / fps))).max() < 1.1 / rate
        seen = {float(f.time): f.to_ndarray(format="gray").mean() for f in container.decode(video)}
        container.seek(0)
        heard = {}
        for frame in container.decode(audio):
            for index, sample in enumerate(np.abs(frame.to_ndarray()).max(0)):
                heard[frame.time + index / rate] = sample
    seconds = np.array([time for time, level in seen.items() if level > 200])
    times, levels = np.array([*heard]), np.array([*heard.values()])
    near = np.abs(times - seconds[:, None]) < 0.25
    clicks = times[np.where(near, levels, 0).argmax(1)]
    offsets = np.subtract(clicks, seconds)
    assert len(offsets) == len(flashes)
    # A click lies on a sample, half a sample from the flash at most; the limit is 1 ms.
    assert np.abs(offsets).max() < 0.6 / rate and np.ptp(offsets) < 1.1 / rate


@pytest.mark.parametrize("seconds", [0.01, 0.3, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_gets_the_length_of_the_picture(tmp_path, seconds, channels):
    path, fps = tmp_path / "a.mp4", Fraction(24000, 1001)
    sound = np.random.default_rng(0).normal(0, 0.1, (channels, round(seconds * 24_000)))
    write_video(path, moving_bars(25), fps, sound.astype(np.float32), 24_000)
    with av.open(str(path)) as container:
        assert sum(f.samples for f in container.decode(audio=0)) == round(25 / fps * 24_000)
    got = read_audio(path, 24_000, 25 / fps)
    silent = round(seconds * 24_000) + 2048  # the length of AAC's windows
    assert np.abs(got[:, silent:]).max(initial=0) < 1e-3


def test_odd_sizes_and_odd_rates_are_not_written(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match=r"a\.mp4: 63x48 pixels; an \.mp4 needs even sizes"):
        write_video(path, moving_bars(2, 48, 63), 25)
    with pytest.raises(InputError, match=r"a\.mp4: cannot be written: "):
        write_video(path, moving_bars(2), 25, click(0.1, 0, rate=12_345), 12_345)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_wav(tmp_path):
    path = tmp_path / "new" / "a.wav"
    sound = np.array([[0, 0.5, 2], [-1, -2, 0.25]], np.float32)
    write_wav(path, sound, 24_000)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 24_000, 2)
        got = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2).T
    np.testing.assert_array_equal(got, [[0, 16384, 32767], [-32767, -32767, 8192]])
    np.testing.assert_allclose(
        read_audio(path, 24_000, 3 / 24_000), np.clip(sound, -1, 1), atol=1e-4
    )


def test_frames_in_pieces_are_written_alike_and_not_kept(tmp_path):
    frames, sound = moving_bars(25), click(1, 0.5)
    write_video(tmp_path / "whole.mp4", frames, 25, sound)
    pieces: list[weakref.ref] = []

    def decode() -> Iterator[np.ndarray]:
        for part in np.split(frames, [9, 17]):
            assert not any(piece() is not None for piece in pieces)
            piece = part.copy()
            pieces.append(weakref.ref(piece))
            yield piece
            del piece

    write_video(tmp_path / "pieces.mp4", decode(), 25, sound)
    assert len(pieces) == 3
    assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
