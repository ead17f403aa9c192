"""Colours as FFmpeg has them, tagged and untagged, and HDR as a screen of BT.709 shows it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from helpers.clips import mux

from justdubit_jax.clips.colour import Colour
from justdubit_jax.clips.formats import EXACT
from justdubit_jax.clips.read import read_video
from justdubit_jax.errors import InputError

# Of the colour chart (BabelColor's averages of the ColorChecker, sRGB) a few, and a grey ramp.
CHART = [
    (115, 82, 68),
    (194, 150, 130),
    (98, 122, 157),
    (56, 61, 150),
    (70, 148, 73),
    (175, 54, 60),
]
RAMP = [(n, n, n) for n in range(16, 240, 37)]


def chart(height: int = 64, width: int = 96) -> np.ndarray:
    """Patches of 16 x 16 pixels."""
    picture = np.zeros((height, width, 3), np.uint8)
    patches = [CHART[k % len(CHART)] if k % 2 else RAMP[k % len(RAMP)] for k in range(1000)]
    for k, (y, x) in enumerate((y, x) for y in range(0, height, 16) for x in range(0, width, 16)):
        picture[y : y + 16, x : x + 16] = patches[k % len(patches)]
    return np.repeat(picture[None], 2, 0)


def tagged(path: Path, frames: np.ndarray, matrix: int, full: bool = False) -> Path:
    """A clip whose pixels are of a matrix; the numbers of H.273: 1 BT.709, 5 BT.601, 2 none."""

    def tag(stream):
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.options = {"qp": "1"}

    return mux(path, frames, change=tag)


def by_ffmpeg(path: Path, matrix: int | None) -> np.ndarray:
    """The first frame by swscale alone, as golden_e2e's pictures are made."""
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        return frame.to_ndarray(format="rgb24", interpolation=EXACT, src_colorspace=matrix)


@pytest.mark.parametrize(
    "name, video, pixels",
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p10le"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.mkv", "ffv1", "bgr0"),
    ],
)
def test_a_chart_is_what_ffmpeg_makes_of_it(tmp_path, name, video, pixels):
    path = mux(tmp_path / name, chart(), video=video, pixels=pixels)
    got = read_video(path).frames[0]
    np.testing.assert_array_equal(got, by_ffmpeg(path, None))
    middles = got[8::16, 8::16].astype(int) - chart()[0, 8::16, 8::16]
    assert np.abs(middles).max() <= (0 if pixels == "bgr0" else 8)  # of the encoder and 4:2:0


@pytest.mark.parametrize(
    "size, matrix, name, want",
    [
        ((64, 96), 2, "BT.601 (untagged)", Colorspace.ITU601),
        ((576, 96), 2, "BT.601 (untagged)", Colorspace.ITU601),
        ((720, 64), 2, "BT.709 (untagged)", Colorspace.ITU709),
        ((64, 1280), 2, "BT.709 (untagged)", Colorspace.ITU709),
        ((64, 96), 1, "BT.709", Colorspace.ITU709),
        ((720, 64), 5, "BT.601", Colorspace.ITU601),
        ((720, 64), 6, "BT.601", Colorspace.ITU601),
        ((64, 96), 7, "SMPTE 240M", Colorspace.SMPTE240M),
    ],
)
def test_which_matrix(tmp_path, size, matrix, name, want):
    path = tagged(tmp_path / "a.mp4", chart(*size), matrix)
    clip = read_video(path)
    assert clip.facts.colour == name
    np.testing.assert_array_equal(clip.frames[0], by_ffmpeg(path, int(want)))


def test_full_range(tmp_path):
    path = tagged(tmp_path / "a.mp4", chart(), 1, full=True)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).color_range == ColorRange.JPEG
    np.testing.assert_array_equal(read_video(path).frames[0], by_ffmpeg(path, None))


TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMINANCE = np.array([0.2627, 0.6780, 0.0593])
TRANSFERS = {"HLG": 18, "PQ": 16, "BT.2020": 14}


def codes(colour: tuple[int, int, int], transfer: str) -> np.ndarray:
    """Y, Cb, Cr of 10 bits by BT.2100, for what a screen shows as a colour of sRGB.

    White is at 203 cd/m2 (BT.2408).
    """
    c = np.array(colour) / 255
    light = TO_2020 @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    if transfer == "HLG":
        display = 0.203 * light
        scene = display * (LUMINANCE @ display) ** (-0.2 / 1.2)
        log = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), log)
    elif transfer == "PQ":
        y = (203 * light / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    else:
        signal = light ** (1 / 2.4)  # as BT.1886 shows it
    y = LUMINANCE @ signal
    cb, cr = (signal[2] - y) / 1.8814, (signal[0] - y) / 1.4746
    return np.round([876 * y + 64, 896 * cb + 512, 896 * cr + 512]).astype("<u2")


def wide(path: Path, colours: list[tuple[int, int, int]], transfer: str, matrix: int = 9) -> Path:
    """A frame of each colour, BT.2020 in 10 bits."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc = 9, TRANSFERS[transfer]
        context.colorspace, context.color_range = matrix, 1
        for index, colour in enumerate([*colours, None]):
            frame = None
            if colour is not None:
                frame = av.VideoFrame(64, 64, "yuv420p10le")
                for plane, code in zip(frame.planes, codes(colour, transfer), strict=True):
                    plane.update(np.full(plane.buffer_size // 2, code, "<u2").tobytes())
                frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
    return path


# swscale takes seconds to make the tables of a conversion, so two of three are deep.
@pytest.mark.parametrize(
    "transfer", ["HLG", *(pytest.param(name, marks=pytest.mark.deep) for name in ("PQ", "BT.2020"))]
)
def test_wide_colours_are_what_a_screen_shows(tmp_path, transfer):
    """Within 12 levels (of FFmpeg's tone mapping and gamut clipping), white too."""
    colours = [(224, 172, 150), *CHART[:5], *RAMP[1:], (255, 255, 255)]
    path = wide(tmp_path / "a.mp4", colours, transfer)
    clip = read_video(path)
    assert clip.facts.colour == f"{transfer} -> BT.709"
    want = np.array(colours, float)
    if transfer == "BT.2020":  # keeps its curve, which is not sRGB's
        c = want / 255
        want = 255 * np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) ** (1 / 2.4)
    assert np.abs(clip.frames[:, 32, 32] - want).max() <= 12
    assert f"colours converted: {transfer} -> BT.709" in clip.facts.look_notes()


def test_a_matrix_of_bt2020_means_its_primaries(tmp_path):
    path = wide(tmp_path / "a.mp4", [CHART[0]], "BT.2020")
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    frame.color_primaries = 2
    assert Colour(frame).name == "BT.2020 -> BT.709"


@pytest.mark.parametrize(
    "matrix, name", [(10, "BT.2020 constant luminance"), (14, "ICtCp"), (8, "YCgCo")]
)
def test_unknown_colours_are_refused_by_name(tmp_path, matrix, name):
    path = tagged(tmp_path / "a.mp4", chart(), matrix)
    with pytest.raises(
        InputError, match=rf"a\.mp4: its colours are {name}, which cannot be conver"
    ):
        read_video(path)


def test_dolby_vision_without_a_base_layer_is_refused(tmp_path):
    def tag(stream):
        stream.codec_context.codec_tag = "hvc1"
        stream.codec_context.options = {"x265-params": "log-level=error", "preset": "ultrafast"}

    kind = {"video": "libx265", "pixels": "yuv420p10le", "change": tag}
    path = mux(tmp_path / "a.mp4", chart(), **kind)
    data = path.read_bytes()
    assert data.count(b"hvc1") == 1
    path.write_bytes(data.replace(b"hvc1", b"dvh1"))
    with pytest.raises(InputError, match=r"a\.mp4: Dolby Vision without an ordinary base layer"):
        read_video(path)
