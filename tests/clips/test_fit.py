"""Clips brought to the model's sizes, rate and length, from real files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.layout import LTX2

from justdubit_jax.clips.fit import fit_clip, fit_image, fit_size
from justdubit_jax.clips.read import iterate_pictures, read_video
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.clips.write import write_video
from justdubit_jax.errors import InputError

NTSC = Fraction(30000, 1001)


def numbered(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Flat frames that carry their numbers: see `numbers`."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (16 * (np.arange(count) % 16)).astype(np.uint8)[:, None, None, None]
    frames[:, :, width // 2 :] = 16 * (np.arange(count) // 16)[:, None, None, None]
    return frames


def numbers(frames: np.ndarray) -> np.ndarray:
    _, height, width, _ = frames.shape
    low, high = frames[:, height // 2, width // 4, 0], frames[:, height // 2, 3 * width // 4, 0]
    return np.rint(low / 16).astype(int) + 16 * np.rint(high / 16).astype(int)


def written(path: Path, frames: np.ndarray, fps: Fraction) -> Path:
    """An .mp4, or an .mkv, whose stamps are rounded to milliseconds."""
    if path.suffix == ".mp4":
        write_video(path, frames, fps)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array)))
        container.mux(stream.encode(None))
    return path


def stamped(path: Path, stamps: list[int], rotation: int = 0, size=(64, 96)) -> Path:
    """Numbered frames at any times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for stamp, array in zip(stamps, numbered(len(stamps), *size), strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "size, fitted",
    [
        ((1080, 1920), (352, 640)),
        ((2160, 3840), (352, 640)),
        ((1920, 1080), (640, 352)),
        ((352, 640), (352, 640)),
        ((480, 640), (416, 544)),
        ((1000, 1000), (480, 480)),
        ((64, 96), (64, 96)),  # small ones are not enlarged
        ((281, 500), (288, 512)),
        ((4000, 100), (3008, 64)),
        ((9, 500), (32, 512)),
    ],
)
def test_fit_size(size, fitted):
    assert fit_size(*size, 32) == fitted


def test_fit_size_of_a_given_side():
    assert fit_size(1080, 1920, 32, new_height=704, new_width=64) == (704, 64)
    assert fit_size(1080, 1920, 32, new_height=704) == (704, 1248)
    assert fit_size(1080, 1920, 32, new_width=704) == (384, 704)
    assert fit_size(1080, 1920, 32, pixels=320 * 192) == (192, 320)


@pytest.mark.parametrize(
    "sides, complaint",
    [
        ({"new_width": 650}, "width 650 is not a multiple of 32; nearest: 640 and 672"),
        ({"new_height": 31, "new_width": 64}, "height 31 is not a multiple of 32; nearest: 32"),
        ({"new_height": 0}, "height 0 is not a multiple of 32; nearest: 32"),
        ({"new_height": -64}, "height -64 is not a multiple of 32; nearest: 32"),
    ],
)
def test_sizes_off_the_grid_are_refused(sides, complaint):
    with pytest.raises(InputError) as caught:
        fit_size(1080, 1920, 32, **sides)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [Fraction(25), NTSC, Fraction(24000, 1001)])
def test_a_clip_that_fits_is_left_alone(tmp_path, suffix, fps):
    path = written(tmp_path / f"a.{suffix}", numbered(33), fps)
    for rate in (None, fps, float(fps), f"{float(fps):.2f}"):
        fitted = fit_clip(path, LTX2, rate)
        assert (fitted.fps, fitted.seconds, fitted.notes) == (fps, 33 / fps, [])
        np.testing.assert_array_equal(fitted.frames, read_video(path).frames)


@pytest.mark.parametrize(
    "fps, rate, total",
    [
        (Fraction(30), Fraction(25), 75),
        (Fraction(60), Fraction(24), 36),
        (Fraction(24), Fraction(25), 94),
        (Fraction(24000, 1001), Fraction(25), 94),
        (Fraction(25), Fraction(50), 180),
        (NTSC, Fraction(24000, 1001), 72),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_resampling_takes_the_nearest_frames(tmp_path, fps, rate, total, suffix):
    path = written(tmp_path / f"a.{suffix}", numbered(90), fps)
    fitted = fit_clip(path, LTX2, rate)
    count = (total - 1) // 8 * 8 + 1
    assert (len(fitted.frames), fitted.fps) == (count, rate)
    # Nearest, halves to the earlier: ceil(x - 1/2).
    want = [-((1 - 2 * k / rate * fps) // 2) for k in range(count)]
    np.testing.assert_array_equal(numbers(fitted.frames), np.minimum(want, 89))
    assert fitted.notes[0] == f"resampled {float(fps):g} -> {float(rate):g} fps"


def test_a_variable_rate_becomes_constant(tmp_path):
    # The clock starts at 0.5 s; then gaps of 20, 60, 100 ms.
    stamps = (500 + np.cumsum([0, *[20, 60, 100] * 12])).tolist()
    for name in ("a.mp4", "a.mkv"):
        path = stamped(tmp_path / name, stamps)
        fitted = fit_clip(path, LTX2, 25)
        times = np.array(stamps) - 500
        distances = np.abs(times[None] - 40 * np.arange(len(fitted.frames))[:, None])
        np.testing.assert_array_equal(numbers(fitted.frames), distances.argmin(1))
        assert len(fitted.frames) == 49  # of 2.16 s and the last frame
        assert fitted.notes[0] == "resampled from a variable frame rate to 25 fps"
        assert [round(p.time * 1000) for p in iterate_pictures(path)] == times.tolist()
        assert fit_clip(path, LTX2).fps == Fraction(50, 3)  # no interval prevails: the mean


def test_stamps_too_near_are_no_rate(tmp_path):
    path = stamped(tmp_path / "a.mkv", list(range(30)))
    with pytest.raises(InputError, match=r"a\.mkv: its time stamps say 1000 frames per second; gi"):
        fit_clip(path, LTX2)
    with pytest.raises(InputError, match="1 frames at 25 fps"):
        fit_clip(path, LTX2, 25)


def test_a_second_without_frames_is_damage(tmp_path):
    stamps = [40 * k for k in range(60) if not 20 < k < 50]
    path = stamped(tmp_path / "a.mkv", stamps)
    with pytest.raises(InputError, match=r"a\.mkv: damaged: no frames for 1\.2 s"):
        fit_clip(path, LTX2, 25)


def test_it_says_what_it_does(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, numbered(26, 90, 160), 30)
    fitted = fit_clip(path, LTX2, 25, height=64, width=64)
    assert fitted.frames.shape == (17, 64, 64, 3)
    assert fitted.notes == [
        "resized and cropped 160x90 -> 64x64, losing 43.8 % of its width",
        "resampled 30 -> 25 fps",
        "cut 22 -> 17 frames",
    ]
    np.testing.assert_array_equal(numbers(fitted.frames[[0, 5, 15]]), [0, 6, 18])
    fitted = fit_clip(path, LTX2, max_frames=23)
    assert fitted.notes == [
        "resized and cropped 160x90 -> 160x96, losing 6.2 % of its width",
        "cut to its first 17 frames",
    ]
    whole = read_video(path, 17).frames
    np.testing.assert_array_equal(fitted.frames, resize_and_crop(whole, 96, 160))
    assert fit_clip(path, LTX2, max_frames=999).notes[-1] == "cut 26 -> 25 frames"
    write_video(path, numbered(9, 64, 96), 30)
    assert fit_clip(path, LTX2, max_frames=9).notes == []
    notes = fit_clip(path, LTX2, width=64, height=64).notes
    assert notes == ["cropped 96x64 -> 64x64, losing 33.3 % of its width"]
    assert fit_clip(path, LTX2, height=128).notes == ["resized 96x64 -> 192x128"]


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_clips_are_turned_upright(tmp_path, rotation):
    path = stamped(tmp_path / "a.mp4", [40 * k for k in range(9)], rotation)
    plain = stamped(tmp_path / "plain.mp4", [40 * k for k in range(9)])
    turned = np.rot90(read_video(plain).frames, rotation // 90, (1, 2))
    np.testing.assert_array_equal(read_video(path).frames, turned)
    fitted = fit_clip(path, LTX2, 25)
    np.testing.assert_array_equal(fitted.frames, turned)
    assert fitted.notes[0] == f"turned by {rotation % 360} degrees counterclockwise"
    still = fit_image(path, *fitted.frames.shape[1:3])
    np.testing.assert_array_equal(still, fitted.frames[:1])


def test_an_image_as_first_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), np.uint8)
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.time_base, context.pix_fmt = 50, 70, Fraction(1), "rgb24"
    packets = [*context.encode(av.VideoFrame.from_ndarray(frames[0])), *context.encode(None)]
    path = tmp_path / "a.png"
    path.write_bytes(b"".join(map(bytes, packets)))
    want = resize_and_crop(frames, 32, 64)
    np.testing.assert_array_equal(fit_image(path, 32, 64), want)
    with pytest.raises(InputError, match=r"a\.png: 1 frames at 1 fps, at least 9 are needed"):
        fit_clip(path, LTX2)


def test_what_cannot_be_fitted_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, numbered(9), 25)
    assert len(fit_clip(path, LTX2).frames) == 9
    for arguments, complaint in (
        ({"frame_rate": 20}, r"a\.mp4: 7 frames at 20 fps, at least 9 are needed"),
        ({"frame_rate": 0}, "frame rate 0: expected a number above 0"),
        ({"frame_rate": "fast"}, "frame rate fast: expected a number above 0"),
        ({"max_frames": 8}, "max_frames 8: a clip has at least 9 frames"),
        ({"width": 100}, "width 100 is not a multiple of 32; nearest: 96 and 128"),
    ):
        with pytest.raises(InputError, match=complaint):
            fit_clip(path, LTX2, **arguments)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"a\.mp4: "):
        fit_clip(path, LTX2)
    with pytest.raises(InputError, match=r"b\.mp4: No such file"):
        fit_clip(tmp_path / "b.mp4", LTX2)
