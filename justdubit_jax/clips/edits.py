"""The edit lists of an mp4 or mov: which part of a track is shown, and from when.

libavformat drops a frame that began before the edit and gives the next one the time 0, though it is
up to a frame later. Where every track has one edit its `advanced_editlist` can be switched off:
then the stamps are the file's own, and what lies outside the edit is for the reader to leave out.
Boxes are those of ISO/IEC 14496-12: moov/mvhd, and for each track trak/tkhd, trak/mdia/mdhd and
trak/edts/elst.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

_CONTAINERS = (b"moov", b"trak", b"edts", b"mdia")
_TAIL = Fraction(3, 2000)  # s; an edit's length is often rounded to milliseconds


class Window(NamedTuple):
    """The part of a track's clock that is shown, in seconds."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None

    def holds(self, time: Fraction, tick: Fraction) -> bool:
        """Whether a frame of that stamp, in units of `tick` seconds, begins inside."""
        return time > self.start - tick and (self.end is None or time < self.end - _TAIL)


def simple_edits(file: BinaryIO) -> dict[int, Window] | None:
    """Windows by track id, where every track has one edit at most, at normal speed; else None.

    None also for what is no mp4 or mov. The file is left at its start.
    """
    try:
        scale, track, tracks = 0, 0, {}
        for kind, body in _boxes(file, 0, file.seek(0, 2)):
            fields = 20 if body[0] else 12  # behind version, flags and two times
            if kind == b"mvhd":
                (scale,) = struct.unpack_from(">I", body, fields)
            elif kind == b"tkhd":
                (track,) = struct.unpack_from(">I", body, fields)
            elif kind in (b"elst", b"mdhd"):
                tracks.setdefault(track, {})[kind] = body
        windows = {
            track: _window(boxes[b"elst"], scale, boxes[b"mdhd"])
            for track, boxes in tracks.items()
            if b"elst" in boxes
        }
        simple = scale and None not in windows.values()
        return {track: window for track, window in windows.items() if window} if simple else None
    except (struct.error, KeyError, IndexError, ZeroDivisionError):
        return None
    finally:
        file.seek(0)


def _window(elst: bytes, scale: int, mdhd: bytes) -> Window | None:
    """Of an edit list: an empty edit may come before the one that shows the media."""
    (count,) = struct.unpack_from(">I", elst, 4)
    layout = ">QqI" if elst[0] else ">IiI"
    if count > 2:
        return None
    edits = [
        struct.unpack_from(layout, elst, 8 + i * struct.calcsize(layout)) for i in range(count)
    ]
    delay = edits.pop(0)[0] if edits and edits[0][1] == -1 else 0
    if len(edits) != 1 or edits[0][1] < 0 or edits[0][2] != 0x10000:
        return None
    length, from_ = Fraction(edits[0][0], scale), edits[0][1]
    media_scale, media = struct.unpack_from(
        ">IQ" if mdhd[0] else ">II", mdhd, 20 if mdhd[0] else 12
    )
    start, left = Fraction(delay, scale), Fraction(media - from_, media_scale)
    # An edit of length 0 goes on to the end, as one does that is as long as the media.
    return Window(start, start + length if 0 < length < left - _TAIL else None)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The boxes that matter here, in the order of the file."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        stop = start + size if size else end
        if stop <= start or not kind.isascii():
            return
        if kind in _CONTAINERS:
            yield from _boxes(file, start + head, min(stop, end))
        elif kind in (b"mvhd", b"tkhd", b"mdhd", b"elst"):
            yield kind, file.read(min(stop - start - head, 1 << 16))
        start = stop
