"""How pictures are shown: turned, mirrored, of non-square pixels, interlaced; from real files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import boxes
from helpers.clips import mux
from helpers.layout import LTX2

from justdubit_jax.clips.fit import fit_clip, fit_image
from justdubit_jax.clips.read import Shape, iterate_pictures, read_clip, read_video
from justdubit_jax.clips.scale import resize_and_crop
from justdubit_jax.preprocessing.buckets import choose_bucket, parse_buckets


def corners(frames: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """Flat fields, each corner another grey, so that a picture tells how it lies."""
    picture = np.full((height, width, 3), 120, np.uint8)
    for value, (y, x) in zip((40, 90, 160, 220), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        picture[y * height // 2 :, x * width // 2 :][: height // 2, : width // 2] = value
    return np.repeat(picture[None], frames, 0)


# a, b, c, d of the display matrix: x' = a x + c y, y' = b x + d y; and the picture, made by numpy.
SHOWN = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a phone held upright
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (-1, 0, 0, 1): np.fliplr,  # a front camera
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: np.rot90(p.swapaxes(0, 1), 2),
}


@pytest.mark.parametrize("matrix", SHOWN, ids=str)
def test_pictures_are_shown_by_the_display_matrix(tmp_path, matrix):
    path = mux(tmp_path / "a.mp4", corners())
    stored = read_video(path).frames
    boxes.orient(path, *matrix)
    want = np.stack([SHOWN[matrix](picture) for picture in stored])
    clip = read_video(path)
    np.testing.assert_array_equal(clip.frames, want)
    height, width = want.shape[1:3]
    np.testing.assert_array_equal(fit_image(path, height, width), want[:1])
    assert clip.facts.mirrored == (np.linalg.det(np.reshape(matrix, (2, 2))) < 0)
    again = np.fliplr(stored[0]) if clip.facts.mirrored else stored[0]
    np.testing.assert_array_equal(np.rot90(again, clip.facts.turned // 90), want[0])
    notes = fit_clip(path, LTX2).notes
    assert any("turned" in note or "mirrored" in note for note in notes) == (matrix != (1, 0, 0, 1))


def disc(height: int, width: int, aspect: Fraction) -> np.ndarray:
    """A disc that is round where pixels have that aspect."""
    y, x = np.mgrid[:height, :width]
    across = (x + 0.5 - width / 2) * float(aspect)
    inside = across**2 + (y + 0.5 - height / 2) ** 2 < (0.35 * height) ** 2
    return np.repeat(np.where(inside, 235, 30).astype(np.uint8)[None, ..., None], 9, 0).repeat(
        3, -1
    )


def roundness(picture: np.ndarray) -> float:
    inside = picture[..., 0] > 130
    return inside.any(0).sum() / inside.any(1).sum()


def squeezed(path: Path, height: int, width: int, aspect: Fraction, **kind) -> Path:
    def set_aspect(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    return mux(path, disc(height, width, aspect), **kind, change=set_aspect)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(
    "height, width, aspect, shown, bucket",
    [
        (144, 176, Fraction(16, 11), (144, 256), (128, 224)),
        (96, 120, Fraction(4, 3), (96, 160), (96, 160)),
        (96, 160, Fraction(8, 9), (108, 160), (96, 128)),
        (128, 64, Fraction(2, 1), (128, 128), (96, 96)),
    ],
)
def test_a_disc_is_round(tmp_path, name, height, width, aspect, shown, bucket):
    path = squeezed(tmp_path / name, height, width, aspect)
    assert roundness(read_video(path, 9).frames[0]) == pytest.approx(1, abs=0.04)
    assert read_video(path).frames.shape[1:3] == shown
    shapes = parse_buckets("128x96x9;160x96x9;96x96x9;224x128x9", LTX2)

    def choose(count: int, y: int, x: int) -> Shape:
        return Shape(*choose_bucket(count, y, x, shapes))

    clip = read_clip(path, choose, 9)
    assert clip.frames.shape[1:3] == bucket
    assert roundness(clip.frames[0]) == pytest.approx(1, abs=0.04)
    assert roundness(fit_clip(path, LTX2).frames[0]) == pytest.approx(1, abs=0.04)
    (first,) = (note for note in fit_clip(path, LTX2).notes if "pixels" in note)
    assert first.endswith(f"shown as {shown[1]}x{shown[0]}")


def test_pixels_of_a_turned_clip(tmp_path):
    """The aspect is that of stored pixels: a turned one is as much the other way."""
    path = squeezed(tmp_path / "a.mp4", 96, 120, Fraction(4, 3))
    boxes.orient(path, 0, 1, -1, 0)
    clip = read_video(path)
    assert clip.frames.shape[1:3] == (160, 96)
    assert roundness(clip.frames[0]) == pytest.approx(1, abs=0.04)


def test_nearly_square_pixels_are_square(tmp_path):
    path = squeezed(tmp_path / "a.mp4", 64, 96, Fraction(399, 400))
    assert read_video(path).frames.shape[1:3] == (64, 96)


def test_pixels_are_scaled_to_square_ones_at_once():
    """A squeezed picture scaled by its aspect is the whole one scaled."""
    y, x = np.mgrid[:48, :96]
    whole = np.stack([60 + x, 40 + 2 * y, 200 - x], -1).astype(np.uint8)[None]
    half = whole.reshape(1, 48, 48, 2, 3).mean(3).round().astype(np.uint8)
    got = resize_and_crop(half, 32, 64, Fraction(2)).astype(int)
    assert np.abs(got - resize_and_crop(whole, 32, 64)).max() <= 2


@pytest.mark.parametrize("name, codec", [("a.ts", "mpeg2video"), ("a.mp4", "libx264")])
def test_fields_are_put_together(tmp_path, name, codec):
    """A bar that moves between the fields of a frame: woven, its edge is a comb."""
    frames = np.full((17, 64, 96, 3), 40, np.uint8)
    for k in range(17):
        for field in (0, 1):
            left = 8 + 4 * (2 * k + field) % 60
            frames[k, field::2, left : left + 16] = 220

    def interlaced(stream):
        stream.codec_context.options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}

    path = mux(tmp_path / name, frames, video=codec, change=interlaced)
    clip = read_video(path)
    assert clip.facts.deinterlaced and (len(clip.frames), clip.fps) == (17, 25)
    assert not clip.facts.variable
    comb = np.abs(np.diff(clip.frames[..., 0].astype(int), axis=1))[2:-2, 8:-8].mean()
    woven = np.abs(np.diff(frames[..., 0].astype(int), axis=1))[2:-2, 8:-8].mean()
    assert comb < 0.3 * woven
    assert [picture.time for picture in iterate_pictures(path)] == [
        Fraction(k, 25) for k in range(17)
    ]
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    assert "deinterlaced" in fit_clip(path, LTX2).notes
