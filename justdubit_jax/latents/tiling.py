"""Video through the VAE in overlapping tiles: device memory is bounded by the tile, not the clip.

Near a cut, convolutions see padding where the whole clip has a neighbour, so a tile is wrong there,
less so with every step away. Hence the overlaps, in which the tile that is farther from its own cut
counts more. The result is close to the untiled one. It is the same where the clip fits into one
tile and, but for rounding, where all convolutions together reach less than a quarter of an overlap.

All tiles of a clip have one shape, so `encode` and `decode`, given jitted, compile once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, UInt8

from justdubit_jax.errors import InputError
from justdubit_jax.models.tokens import Layout

Coder = Callable[[np.ndarray], ArrayLike]  # one tile, with a batch axis of 1
Spans = Sequence[slice]  # where the tiles lie on one axis, in order
Weights = Sequence[Float32[np.ndarray, "n"]]  # of the tiles of one axis, along it


class _Piece(NamedTuple):
    """One axis of a tile: where it is read, where it is added, and how much it counts there."""

    source: slice
    target: slice
    weights: Float32[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The largest tile, and how much neighbours share at least. Raises ValueError.

    Tiles are made of whole latents. In space that is 32 pixels. In time, tiles and overlaps are
    8k + 1 frames, since the first latent of a tile is one frame and the others are eight. At least
    two latents are shared on every axis, so that neither tile needs the one at its cut.
    """

    layout: Layout
    pixels: int
    pixel_overlap: int
    frames: int
    frame_overlap: int

    def __post_init__(self):
        in_time, in_space = self.layout.frames_per_latent, self.layout.pixels_per_latent
        for name in ("pixels", "pixel_overlap"):
            if (got := getattr(self, name)) % in_space:
                raise ValueError(f"{name}: got {got}, expected a multiple of {in_space}")
        for name in ("frames", "frame_overlap"):
            if not self.layout.is_legal(got := getattr(self, name)):
                raise ValueError(f"{name}: got {got}, expected a multiple of {in_time}, plus 1")
        least = {"pixel_overlap": 2 * in_space, "frame_overlap": 1 + in_time}
        for (name, bound), size in zip(least.items(), (self.pixels, self.frames), strict=True):
            if not bound <= (got := getattr(self, name)) < size:
                raise ValueError(
                    f"{name}: got {got}, expected at least {bound} and less than the tile's {size}"
                )

    def holds(self, frames: int, rows: int, columns: int) -> bool:
        """Whether a clip of so many latents is one tile."""
        return all(len(spans) == 1 for spans in self.split(frames, rows, columns))

    def split(self, frames: int, rows: int, columns: int) -> tuple[Spans, Spans, Spans]:
        """The tiles of a clip of so many latents, along its three axes."""
        latents, in_space = self.layout.video_latent_frames, self.layout.pixels_per_latent
        time = latents(self.frames), latents(self.frame_overlap)
        space = self.pixels // in_space, self.pixel_overlap // in_space
        return _split(frames, *time), _split(rows, *space), _split(columns, *space)


# Five seconds of 640x352 are one tile. The published VAE in bfloat16 needs 10 GB to encode and
# 6.5 GB to decode that, weights included, and 15 and 11 GB for a full tile: XLA's estimates, made
# for a CPU.
# The overlaps are those of Lightricks/LTX-2:packages/ltx-trainer/scripts/decode_latents.py.
def default_tiling(layout: Layout) -> Tiling:
    return Tiling(layout, pixels=640, pixel_overlap=128, frames=121, frame_overlap=25)


def encode_tiled(
    encode: Coder, frames: UInt8[np.ndarray, "f y x 3"], tiling: Tiling
) -> Float32[np.ndarray, "c _g _h _w"]:
    """Encode a clip; `encode` takes bytes [1, f, y, x, 3] and returns latents [1, c, f, y, x].

    Frames after the last 8k + 1 are cropped, as by the encoder itself. Raises InputError unless
    rows and columns are multiples of 32.

    In space the overlaps are blended. In time the encoder is causal: the end of a tile is exact,
    while its start lacks a past, and its first latent stands for one frame instead of eight. So a
    tile's latents are used only from where the tile before it ends; the overlap is its run-up.
    """
    count, height, width, _ = frames.shape
    layout, in_space = tiling.layout, tiling.layout.pixels_per_latent
    if height % in_space or width % in_space:
        raise InputError(
            f"video: got {height} rows x {width} columns, expected multiples of {in_space}"
        )
    shape = layout.grid(count, height, width)
    times, rows, columns = tiling.split(*shape)
    frames_of, pixels_of = (functools.partial(f, layout) for f in (_frames, _pixels))
    latents = None
    for t, y, x in itertools.product(
        _pieces(map(frames_of, times), times, _successions),
        _pieces(map(pixels_of, rows), rows, _blends),
        _pieces(map(pixels_of, columns), columns, _blends),
    ):
        pixels = frames[None, t.source, y.source, x.source]
        tile = np.asarray(encode(pixels), np.float32)[0]
        if latents is None:
            latents = np.zeros((len(tile), *shape), np.float32)
        latents[:, t.target, y.target, x.target] += tile * _product(t, y, x)
    assert latents is not None  # every axis has a tile
    return latents


def decode_tiled(
    decode: Coder, latents: Float[np.ndarray, "c f y x"], tiling: Tiling
) -> Iterator[UInt8[np.ndarray, "f y x 3"]]:
    """Decode a clip; `decode` takes latents [1, c, f, y, x] and returns video [1, 3, f, y, x].

    Yields the frames, 8 (f - 1) + 1 in all, in chunks as they are finished; in memory are the
    floats of one tile's length. A tile that starts at latent j yields frames from 8j on, since its
    first latent gives only the last of the eight frames that it stands for; the others are in the
    tile before. The decoder is not causal, so in time, too, the overlaps are blended.

    Levels are rounded down, as in Lightricks/LTX-2's decode_video.
    """
    times, rows, columns = tiling.split(*latents.shape[1:])
    frames_of, pixels_of = (functools.partial(f, tiling.layout) for f in (_frames, _pixels))
    times = _pieces(times, map(frames_of, times), _blends)
    rows = _pieces(rows, map(pixels_of, rows), _blends)
    columns = _pieces(columns, map(pixels_of, columns), _blends)
    height, width = rows[-1].target.stop, columns[-1].target.stop
    begun = np.zeros((3, 0, height, width), np.float32)
    next_starts = [*(t.target.start for t in times[1:]), times[-1].target.stop]

    def add(video: np.ndarray, t: _Piece, y: _Piece, x: _Piece) -> None:
        tile = decode(latents[None, :, t.source, y.source, x.source])
        weights = _product(t, y, x)
        for channel, part in zip(video, np.asarray(tile, np.float32)[0], strict=True):
            channel[:, y.target, x.target] += part * weights

    # A tile is hundreds of megabytes, so everything of it is let go as soon as it was used.
    for t, next_start in zip(times, next_starts, strict=True):
        video = np.zeros((3, len(t.weights), height, width), np.float32)
        video[:, : begun.shape[1]] = begun
        del begun
        for y, x in itertools.product(rows, columns):
            add(video, t, y, x)
        finished = next_start - t.target.start
        begun = video[:, finished:].copy()  # noqa: F841 (the next turn reads it)
        levels = _to_levels(video[:, :finished])
        del video
        yield levels
        del levels


def _split(length: int, size: int, overlap: int) -> Spans:
    """Spans of one size, at most `size`, that share at least `overlap`; one if it holds all.

    As few as possible; then they are as small as their number allows and spread evenly, instead of
    the last one being a remainder, which would be one more shape to compile.
    """
    if length <= size:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    return [slice(start, start + size) for start in starts]


def _frames(layout: Layout, latents: slice) -> slice:
    start, stop = latents.start, latents.stop
    return slice(layout.frames_per_latent * start, layout.frames_per_latent * (stop - 1) + 1)


def _pixels(layout: Layout, latents: slice) -> slice:
    return slice(layout.pixels_per_latent * latents.start, layout.pixels_per_latent * latents.stop)


def _blends(spans: Spans) -> Weights:
    """Linear ramps in the middle half of the overlaps; at every place the tiles' sum is 1.

    The quarter next to a cut weighs nothing: it is the worst, and of two latents it is the one
    that touches padding. Normalising axis by axis is enough, since tiles form a grid and their
    weights are a product.
    """
    weights = [np.ones(span.stop - span.start, np.float32) for span in spans]
    for (before, after), (left, right) in zip(
        itertools.pairwise(weights), itertools.pairwise(spans), strict=True
    ):
        shared = left.stop - right.start
        ramp = np.clip(2 * (np.arange(shared, dtype=np.float32) + 0.5) / shared - 0.5, 0, 1)
        after[:shared] *= ramp
        before[-shared:] *= ramp[::-1]
    total = np.zeros(spans[-1].stop, np.float32)
    for span, weight in zip(spans, weights, strict=True):
        total[span] += weight
    return [weight / total[span] for span, weight in zip(spans, weights, strict=True)]


def _successions(spans: Spans) -> Weights:
    """1 from where the tile before ends, 0 until there."""
    ends = [0, *(span.stop for span in spans[:-1])]
    return [
        (np.arange(span.start, span.stop) >= end).astype(np.float32)
        for span, end in zip(spans, ends, strict=True)
    ]


def _pieces(
    sources: Iterable[slice], targets: Iterable[slice], weigh: Callable[[Spans], Weights]
) -> list[_Piece]:
    targets = list(targets)
    return [_Piece(*piece) for piece in zip(sources, targets, weigh(targets), strict=True)]


def _product(t: _Piece, y: _Piece, x: _Piece) -> Float32[np.ndarray, "f y x"]:
    return t.weights[:, None, None] * y.weights[:, None] * x.weights


def _to_levels(video: Float32[np.ndarray, "3 f y x"]) -> UInt8[np.ndarray, "f y x 3"]:
    """Of a video in -1..1, which is overwritten."""
    video += 1
    video /= 2
    np.clip(video, 0, 1, out=video)
    video *= 255
    return np.ascontiguousarray(rearrange(video.astype(np.uint8), "c f y x -> f y x c"))
