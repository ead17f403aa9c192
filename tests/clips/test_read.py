"""Clips on disk, with real files written by PyAV."""

import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from justdubit_jax.clips.rates import exact_fps
from justdubit_jax.clips.read import Probe, iterate_pictures, probe, read_audio, read_video
from justdubit_jax.clips.write import write_video, write_wav
from justdubit_jax.errors import InputError

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


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """25 frames and a click at 0.5 s, written by write_video."""
    path = tmp_path_factory.mktemp("media") / "new" / "clip.mp4"
    write_video(path, moving_bars(25), Fraction(30000, 1001), click(25 / 30, 0.5), RATE)
    return path


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


def test_only_the_first_frames(written):
    clip = read_video(written, max_frames=9)
    np.testing.assert_array_equal(clip.frames, read_video(written).frames[:9])


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


@pytest.mark.parametrize(
    "given, exact",
    [
        (25, Fraction(25)),
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(2997, 100), Fraction(2997, 100)),
        ("23.976", Fraction(24000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("2997/100", Fraction(2997, 100)),
        ("25", Fraction(25)),
        ("12.5", Fraction(25, 2)),
    ],
)
def test_exact_fps(tmp_path, given, exact):
    assert exact_fps(given) == exact
    write_video(tmp_path / "a.mp4", moving_bars(3, 32, 32), given)
    clip = read_video(tmp_path / "a.mp4")
    assert (clip.fps, len(clip.frames)) == (exact, 3)


@pytest.mark.parametrize(
    "given", [0, -25, 0.0, 1e-9, float("nan"), float("inf"), "", "fast", "25/0", "-24/1", 2**31]
)
def test_what_is_no_rate_is_refused(given):
    with pytest.raises(InputError, match=r"frame rate .*: expected a number above 0"):
        exact_fps(given)


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
    assert sound.shape == (2, int(seconds * rate))
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
    refusal(path)


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
