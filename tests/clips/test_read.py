"""Clips on disk, read from real files of many kinds, whole and damaged."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import RATE, click, moving_bars, mux

from justdubit_jax.clips.read import Probe, iterate_pictures, probe, read_audio, read_video
from justdubit_jax.clips.write import write_video
from justdubit_jax.errors import InputError


def test_only_the_first_frames(written):
    clip = read_video(written, max_frames=9)
    np.testing.assert_array_equal(clip.frames, read_video(written).frames[:9])


def test_iterate_is_read_video_frame_by_frame(written):
    clip, pictures = read_video(written), list(iterate_pictures(written))
    assert [picture.time for picture in pictures] == [k / clip.fps for k in range(25)]
    np.testing.assert_array_equal([picture.pixels for picture in pictures], clip.frames)


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv444p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "libx264", "yuv444p"),
        ("a.ts", "libx264", "yuv444p"),
        ("with %d and a:b.mkv", "libx264", "yuv444p"),
    ],
)
def test_reads_other_containers_and_odd_sizes(tmp_path, name, codec, pixels):
    path = mux(tmp_path / name, moving_bars(20, 47, 63), video=codec, pixels=pixels)
    clip = read_video(path)
    assert (clip.frames.shape, clip.fps) == ((20, 47, 63, 3), 25)
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), 20 + 8 * np.arange(20), atol=4)
    assert not probe(path).has_audio


def test_matroska_keeps_ntsc_rates(tmp_path):
    path = mux(tmp_path / "a.mkv", moving_bars(20), fps=Fraction(24000, 1001))
    assert read_video(path).fps == Fraction(24000, 1001)


@pytest.mark.parametrize("suffix, codec", [(".png", "png"), (".jpg", "mjpeg"), (".JPEG", "mjpeg")])
def test_an_image_is_one_frame(tmp_path, suffix, codec):
    frames = moving_bars(1, 31, 45)
    path = tmp_path / f"still{suffix}"
    context = av.CodecContext.create(codec, "w")
    context.height, context.width, context.time_base = 31, 45, Fraction(1)
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    packets = [*context.encode(av.VideoFrame.from_ndarray(frames[0])), *context.encode(None)]
    path.write_bytes(b"".join(map(bytes, packets)))
    clip = read_video(path)
    assert clip.fps == 1
    np.testing.assert_allclose(clip.frames, frames, atol=0 if codec == "png" else 8)
    assert probe(path) == Probe(1, Fraction(1), 31, 45, False, None)
    path.write_bytes(path.read_bytes()[:99])
    refusal(path)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_sound_stays_where_it_was(written, rate):
    seconds = read_video(written).seconds
    sound = read_audio(written, rate, seconds)
    assert sound.shape == (2, math.ceil(int(seconds * RATE) * rate / RATE))
    assert (np.abs(np.abs(sound).argmax(1) - 0.5 * rate) <= 1).all()


@pytest.mark.parametrize(
    "name, audio", [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le"), ("a.ts", "aac")]
)
@pytest.mark.parametrize("starts", [(0, 0), (0.2, 0), (0, 0.1)])
def test_sound_is_aligned_with_the_picture(tmp_path, name, audio, starts):
    path = mux(tmp_path / name, moving_bars(25), click(1, 0.5), audio=audio, starts=starts)
    sound = read_audio(path, RATE, 1.0)
    want = (0.5 + starts[1] - starts[0]) * RATE
    # Matroska rounds time stamps to milliseconds.
    assert (np.abs(np.abs(sound).argmax(1) - want) <= 0.0011 * RATE).all()


def test_mono_is_doubled_and_surround_mixed_down(tmp_path):
    mono = mux(
        tmp_path / "mono.mov",
        moving_bars(5),
        0.5 * np.ones((1, 9600), np.float32),
        audio="pcm_s16le",
        layout="mono",
    )
    sound = read_audio(mono, RATE, 0.2)
    np.testing.assert_allclose(sound, 0.5, atol=1e-4)  # at its level
    six = np.zeros((6, 9600), np.float32)
    six[0], six[2] = 0.25, 0.25  # left and centre
    five_one = mux(tmp_path / "six.mov", moving_bars(5), six, audio="pcm_s16le", layout="5.1")
    left, right = read_audio(five_one, RATE, 0.2)
    np.testing.assert_allclose(left, 0.25 + 0.25 * 0.5**0.5, atol=1e-3)
    np.testing.assert_allclose(right, 0.25 * 0.5**0.5, atol=1e-3)


def test_sound_is_padded_and_cut(tmp_path):
    path = mux(
        tmp_path / "a.mov", moving_bars(25), np.ones((2, RATE // 2), "f4"), audio="pcm_f32le"
    )
    sound = read_audio(path, RATE, 0.9)
    assert sound.shape == (2, int(0.9 * RATE))
    assert (sound[:, : RATE // 2] == 1).all() and (sound[:, RATE // 2 :] == 0).all()
    assert read_audio(path, RATE, Fraction(1, 3)).shape == (2, 16_000)


def test_a_gap_in_the_sound_is_silence(tmp_path):
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for start in (0, RATE // 2):
            frame = av.AudioFrame(format="s16", layout="stereo", samples=1200)
            frame.planes[0].update(np.full(2400, 8192, np.int16).tobytes())
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(stream.encode(frame))
    sound = read_audio(path, RATE, 1.0)
    want = np.zeros((2, RATE), np.float32)
    want[:, :1200] = want[:, RATE // 2 : RATE // 2 + 1200] = 0.25
    np.testing.assert_allclose(sound, want)


def refusal(path: Path, read=read_video) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def read_sound(path: Path) -> np.ndarray:
    return read_audio(path, 16_000, 2.0)


@pytest.mark.parametrize("read", [read_video, probe, read_sound])
def test_unreadable_files_are_refused(tmp_path, read):
    assert "No such file" in refusal(tmp_path / "absent.mp4", read)
    assert "Is a directory" in refusal(tmp_path, read)
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "empty.mp4", read).endswith(": empty file")
    (tmp_path / "text.mp4").write_text("hello\n" * 99)
    assert "cannot be decoded" in refusal(tmp_path / "text.mp4", read)


def test_missing_streams_are_refused(tmp_path):
    silent = mux(tmp_path / "silent.mp4", moving_bars(5))
    assert refusal(silent, read_sound).endswith(": no audio stream")
    sound = mux(tmp_path / "sound.mp4", None, click(1, 0.5))
    assert refusal(sound).endswith(": no video stream")
    assert refusal(sound, probe).endswith(": no video stream")
    assert read_sound(sound).shape == (2, 32_000)


@pytest.fixture(scope="module", params=["mp4", "mkv", "webm"])
def noisy(request, tmp_path_factory) -> Path:
    """A clip of 50 frames whose packets are large enough to be damaged."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (50, 64, 64, 3), np.uint8)
    sound = rng.normal(0, 0.1, (2, 2 * RATE)).astype(np.float32)
    path = tmp_path_factory.mktemp("noisy") / f"clip.{request.param}"
    if request.param == "mp4":
        write_video(path, frames, 25, sound, RATE)
    elif request.param == "mkv":
        mux(path, frames, sound)
    else:
        mux(path, frames, sound, video="libvpx", audio="libopus")
    return path


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_files_cut_off_are_refused(tmp_path, noisy, kept):
    assert len(read_video(noisy).frames) == 50
    data = noisy.read_bytes()
    path = tmp_path / noisy.name
    path.write_bytes(data[: int(kept * len(data))])
    refusal(path)
    refusal(path, lambda path: list(iterate_pictures(path)))
    refusal(path, read_sound)
    assert len(read_video(path, max_frames=5).frames) == 5  # what is there can be had


@pytest.mark.parametrize("place", [0.35, 0.5, 0.65])
def test_damage_in_the_middle_is_refused(tmp_path, noisy, place):
    data = bytearray(noisy.read_bytes())
    start = int(place * len(data))
    data[start : start + 6000] = np.random.default_rng(1).bytes(6000)
    path = tmp_path / noisy.name
    path.write_bytes(data)
    if path.suffix == ".webm":  # its reader goes on behind the hole, and VP8 decodes what comes
        assert read_video(path).facts.variable
    else:
        refusal(path)


def test_damage_at_the_beginning_is_refused(tmp_path, noisy):
    data = bytearray(noisy.read_bytes())
    with av.open(str(noisy)) as file:
        first = next(p for p in file.demux(video=0) if p.is_keyframe)
    at = data.index(bytes(first))
    data[at + 300 : at + first.size] = bytes(first.size - 300)
    path = tmp_path / noisy.name
    path.write_bytes(data)
    if path.suffix == ".webm":  # VP8 cannot tell
        return
    refusal(path)
    refusal(path, lambda path: read_video(path, 9))
