"""Masks as people have them: clips, still pictures, alpha channels; and odd ones named."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import mux
from PIL import Image

from justdubit_jax.clips.masks import mask_findings, read_mask
from justdubit_jax.errors import InputError

RATE = Fraction(25)


def box(left: int = 16, right: int = 48) -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, left:right] = 255
    return mask


def white(path: Path, frames: int = 17) -> np.ndarray:
    """Where the mask is white."""
    clip = read_mask(path, frames, 64, 64, RATE)
    assert clip.frames.shape == (frames, 64, 64, 3) and clip.fps == RATE
    return clip.frames.mean(-1) > 127


def test_a_still_picture_is_the_mask_of_every_frame(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(box()).save(path)
    np.testing.assert_array_equal(white(path), np.repeat(box()[None] > 127, 17, 0))
    one = mux(tmp_path / "one.mkv", np.repeat(box()[None, ..., None], 3, -1), video="ffv1")
    np.testing.assert_array_equal(white(one), np.repeat(box()[None] > 127, 17, 0))
    two = np.repeat(np.repeat(box()[None, ..., None], 3, -1), 2, 0)
    clip = read_mask(mux(tmp_path / "two.mkv", two, video="ffv1"), 17, 64, 64, RATE)
    assert len(clip.frames) == 2  # too short, and no still picture


@pytest.mark.parametrize("colour", [0, 255, 128])
def test_a_mask_in_the_alpha_channel(tmp_path, colour):
    pixels = np.full((64, 64, 4), colour, np.uint8)
    pixels[..., 3] = box()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(white(tmp_path / "a.png")[3], box() > 127)
    frames = np.stack([pixels] * 17)
    frames[..., 3] = [box(16 + k) for k in range(17)]
    for name, codec in (("a.mov", "prores_ks"), ("b.mov", "qtrle"), ("a.mkv", "ffv1")):
        path = with_alpha(tmp_path / name, frames, codec)
        assert (white(path) != (frames[..., 3] > 127)).mean() < 0.002
        assert read_mask(path, 17, 64, 64, RATE).facts.colour == "alpha channel"


def test_an_opaque_alpha_channel_is_none(tmp_path):
    pixels = np.repeat(box()[..., None], 4, -1)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(white(tmp_path / "a.png")[0], box() > 127)


def test_an_alpha_channel_that_no_decoder_gives_is_named(tmp_path):
    def mark(stream):
        stream.metadata["alpha_mode"] = "1"

    grey = np.full((17, 64, 64, 3), 90, np.uint8)
    path = mux(tmp_path / "a.webm", grey, video="libvpx-vp9", change=mark)
    with pytest.raises(InputError, match=r"a\.webm: the mask is in an alpha channel that is not"):
        read_mask(path, 17, 64, 64, RATE)


def with_alpha(path: Path, frames: np.ndarray, codec: str) -> Path:
    pixels = {"prores_ks": "yuva444p10le", "qtrle": "argb", "ffv1": "yuva444p"}[codec]
    with av.open(str(path), "w") as out:
        options = {"profile": "4444"} if codec == "prores_ks" else {}
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pixels
        for k, array in enumerate([*frames, None]):
            frame = None
            if array is not None:
                frame = av.VideoFrame.from_ndarray(array, format="rgba").reformat(format=pixels)
                frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
    return path


def kinds(areas: list[int]) -> list[str]:
    """Of a mask whose boxes are so wide."""
    mask = np.stack([box(0, width) if width < 64 else np.full((64, 64), 255) for width in areas])
    return [finding.kind for finding in mask_findings(Path("a"), mask.astype(np.float32) / 255)]


@pytest.mark.parametrize(
    "areas, named",
    [
        ([0] * 17, ["mask-empty"]),
        ([64] * 17, ["mask-full"]),
        ([30, 0] * 8, ["mask-flickers"]),
        ([30] * 8 + [0] + [30] * 8, ["mask-flickers"]),
        ([30] * 6 + [10, 30, 10] + [30] * 8, ["mask-flickers"]),
        ([30] * 8 + [64] + [30] * 8, ["mask-flickers"]),
        ([30 + k % 5 for k in range(17)], []),
        ([0] * 5 + [30] * 12, []),  # a face comes in
        (list(range(20, 54, 2)), []),
    ],
)
def test_odd_masks_are_named(areas, named):
    assert kinds(areas) == named
