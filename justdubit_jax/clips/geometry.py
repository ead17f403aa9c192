"""How a stored picture is shown: turned or mirrored, of which pixel aspect, interlaced or not."""

import dataclasses
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
from av.error import BlockingIOError as NotYet
from av.error import EOFError as NoMore
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video import VideoFrame, VideoStream
from jaxtyping import UInt8

_SQUARE = Fraction(1, 200)  # an aspect so near to 1 is a scaler's rounding


@dataclasses.dataclass(frozen=True)
class Orientation:
    """What a display matrix of right angles says: exchange rows and columns, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged, before the picture is turned."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def turned(self) -> int:
        """Degrees counterclockwise, 0 to 270, after mirroring."""
        if self.transpose:
            return 90 if self.flip_y != self.mirrored else 270
        return 180 if self.flip_y else 0

    def apply(self, picture: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y2 x2 3"]:
        """The picture as it is shown, as a view."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def orientation(frame: VideoFrame) -> Orientation:
    """By the frame's display matrix; of an angle between, the nearest right one."""
    if Type.DISPLAYMATRIX not in frame.side_data:
        return Orientation()
    matrix = np.frombuffer(bytes(frame.side_data[Type.DISPLAYMATRIX]), "=i4")
    # x' = a x + c y, y' = b x + d y (libavutil/display.h), rows from the top down.
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width / height of a stored pixel: the container's word, else the codec's, else square."""
    said = stream.sample_aspect_ratio
    if not said or said.numerator <= 0:
        return Fraction(1)
    aspect = Fraction(said.numerator, said.denominator)
    return Fraction(1) if abs(aspect - 1) < _SQUARE else aspect


def shown_size(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Height and width with square pixels; the side that is squeezed grows, none shrinks."""
    return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)


def deinterlaced(frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, bool]]:
    """Frames one for one, and whether they came through FFmpeg's bwdif.

    It is switched on by the first frame that is marked as interlaced, and leaves others as they
    are.
    """
    graph = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame, False
            continue
        graph = graph or _bwdif(frame)
        graph.vpush(frame)
        yield from ((done, True) for done in _pulled(graph))
    if graph is not None:
        graph.vpush(None)
        yield from ((done, True) for done in _pulled(graph))


def _bwdif(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(template=frame)
    options = {"mode": "send_frame", "parity": "auto", "deint": "interlaced"}
    graph.link_nodes(source, graph.add("bwdif", **options), graph.add("buffersink")).configure()
    return graph


def _pulled(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (NotYet, NoMore):
            return
