"""Clips as one picture: contact sheets, rows of frames, two clips side by side."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from justdubit_jax.files import replacing

_TILE_HEIGHT = 160  # pixels of a frame in a grid
_GAP = 4
_LABEL_HEIGHT = 24


def contact_sheet_png(
    path: Path, rows: Sequence[tuple[str, UInt8[np.ndarray, "_f _y _x 3"]]], columns: int = 8
) -> None:
    """One labelled row of evenly spaced frames for each clip."""
    strips = [(label, Image.fromarray(frame_row(frames, columns))) for label, frames in rows]
    height = _LABEL_HEIGHT + _TILE_HEIGHT + _GAP
    width = max(strip.width for _, strip in strips) + 2 * _GAP
    sheet = Image.new("RGB", (width, height * len(strips)), "white")
    # Pillow's own font has no umlauts.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 14)
    draw = ImageDraw.Draw(sheet)
    for row, (label, strip) in enumerate(strips):
        draw.text((_GAP, height * row + 3), " ".join(label.split()), fill="black", font=font)
        sheet.paste(strip, (_GAP, height * row + _LABEL_HEIGHT))
    with replacing(path) as temporary:
        sheet.save(temporary)


def side_by_side(
    left: UInt8[np.ndarray, "f y x 3"], right: UInt8[np.ndarray, "g y2 x2 3"]
) -> UInt8[np.ndarray, "h y2 x3 3"]:
    """Two clips in one picture: left is scaled to right's height, the longer one is cut."""
    count = min(len(left), len(right))
    left, height = left[:count], right.shape[1]
    if left.shape[1] != height:
        width = 2 * max(1, round(left.shape[2] * height / left.shape[1] / 2))  # mp4 wants even
        left = np.stack([_resized(frame, width, height) for frame in left])
    return np.concatenate([left, right[:count]], axis=2)


def frame_row(frames: UInt8[np.ndarray, "f y x 3"], columns: int) -> UInt8[np.ndarray, "h w 3"]:
    """Up to `columns` evenly spaced frames, first and last among them, on a white strip."""
    count = min(columns, len(frames))
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    width = max(1, round(frames.shape[2] * _TILE_HEIGHT / frames.shape[1]))
    row = np.full((_TILE_HEIGHT, count * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for column, frame in enumerate(chosen):
        x = column * (width + _GAP)
        row[:, x : x + width] = _resized(frame, width, _TILE_HEIGHT)
    return row


def _resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(frame)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
