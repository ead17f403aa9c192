"""From what a frame stores to RGB as a screen of BT.709 shows it."""

import functools

import numpy as np
from av.video import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from jaxtyping import UInt8

from justdubit_jax.clips.formats import EXACT
from justdubit_jax.errors import InputError

# Numbers are those of ITU-T H.273, as FFmpeg has them.
_UNSPECIFIED = (0, 2, 3)
_BT2020 = 9  # as matrix and as primaries
_MATRICES = {
    **{0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"},
}
_REFUSED_MATRICES = {
    **{8: "YCgCo", 10: "BT.2020 constant luminance", 11: "YDzDx", 14: "ICtCp", 15: "IPT-C2"},
    **{12: "chromaticity-derived", 13: "chromaticity-derived constant luminance", 16: "YCgCo-R"},
}
_REFUSED_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE 428"}
_HDR = {int(ColorTrc.ARIB_STD_B67): "HLG", int(ColorTrc.SMPTE2084): "PQ"}
_DOLBY_VISION = ("dvh1", "dvhe", "dva1", "dvav")  # tags of files without an ordinary base layer

# An untagged clip of so many rows or columns is HD.
_HD_ROWS, _HD_COLUMNS = 720, 1280


class Colour:
    """How the frames of one clip become RGB; `name` says it, with an arrow where it converts."""

    def __init__(self, frame: VideoFrame, codec_tag: str = ""):
        """By the first frame. Raises InputError with the name of colours that are not known."""
        matrix, transfer = int(frame.colorspace), int(frame.color_trc)
        primaries = int(frame.color_primaries)
        if codec_tag.strip("\0 ") in _DOLBY_VISION and matrix in _UNSPECIFIED:
            raise InputError("Dolby Vision without an ordinary base layer cannot be converted")
        refused = _REFUSED_TRANSFERS.get(transfer)
        if not _is_rgb(frame):
            refused = refused or _REFUSED_MATRICES.get(matrix)
        if refused:
            raise InputError(f"its colours are {refused}, which cannot be converted")
        self._assumed: dict[str, int] = {}  # where the frames do not say
        self._conversion: dict[str, int] = {}
        self.name = self._matrix(frame, matrix)
        if transfer in _HDR:
            # To sRGB's curve with BT.709's primaries, and tone-mapped, by swscale.
            self.name = f"{_HDR[transfer]} -> BT.709"
            if primaries in _UNSPECIFIED:
                self._assumed["color_primaries"] = _BT2020
            if matrix in _UNSPECIFIED and not _is_rgb(frame):
                self._assumed["colorspace"] = int(Colorspace.BT2020)
            self._convert(ColorTrc.IEC61966_2_1)
        elif _BT2020 in (primaries, matrix) and primaries in (_BT2020, *_UNSPECIFIED):
            self.name = "BT.2020 -> BT.709"
            self._assumed["color_primaries"] = _BT2020
            self._assumed["color_trc"] = int(ColorTrc.BT709)  # BT.2020's curve is the same
            self._convert(ColorTrc.BT709)

    def _matrix(self, frame: VideoFrame, matrix: int) -> str:
        if _is_rgb(frame):
            return "RGB"
        if matrix not in _UNSPECIFIED:
            return _MATRICES.get(matrix, f"matrix {matrix}")
        if frame.height >= _HD_ROWS or frame.width >= _HD_COLUMNS:
            self._conversion["src_colorspace"] = int(Colorspace.ITU709)
            return "BT.709 (untagged)"
        return "BT.601 (untagged)"

    def _convert(self, transfer: ColorTrc) -> None:
        self._conversion["dst_color_trc"] = int(transfer)
        self._conversion["dst_color_primaries"] = int(ColorPrimaries.BT709)
        self._conversion.pop("src_colorspace", None)

    def rgb(self, frame: VideoFrame) -> UInt8[np.ndarray, "y x 3"]:
        """A frame of the clip, RGB of full range."""
        for name, value in self._assumed.items():
            setattr(frame, name, value)
        key = tuple(sorted(self._conversion.items()))
        picture = _reformatter(key).reformat(
            frame, format="rgb24", interpolation=EXACT, **self._conversion
        )
        return np.asarray(picture.to_ndarray())


class Alpha:
    """The alpha channel in place of the colours, white where a frame is opaque."""

    name = "alpha channel"

    def rgb(self, frame: VideoFrame) -> UInt8[np.ndarray, "y x 3"]:
        """The opacity of a frame as a grey picture."""
        opacity = np.asarray(frame.to_ndarray(format="rgba", interpolation=EXACT))[..., 3]
        return np.repeat(opacity[..., None], 3, -1)

    @staticmethod
    def in_use(frame: VideoFrame) -> bool:
        """Whether a frame has an alpha channel that says more than opaque."""
        if not has_alpha(frame):
            return False
        return bool((np.asarray(frame.to_ndarray(format="rgba"))[..., 3] < 255).any())


@functools.lru_cache(maxsize=4)
def _reformatter(_key: tuple[tuple[str, int], ...]) -> VideoReformatter:
    """One for each conversion: it keeps its tables, which take seconds where it tone-maps."""
    return VideoReformatter()


def _is_rgb(frame: VideoFrame) -> bool:
    return frame.format.is_rgb


def has_alpha(frame: VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)
