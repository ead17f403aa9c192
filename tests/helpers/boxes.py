"""An mp4's or mov's boxes changed in place, for what no muxer writes."""

import re
import struct
from pathlib import Path


def _track(data: bytes, kind: bytes) -> tuple[int, int]:
    """Where the track of a kind (vide, soun) begins and ends."""
    handler = re.search(b"hdlr\\0{4}(mhlr|\\0{4})" + kind, data)
    assert handler
    begin = data.rindex(b"trak", 0, handler.start())
    return begin, begin - 4 + struct.unpack_from(">I", data, begin - 4)[0]


def _scale(data: bytes) -> int:
    """Units a second of the edits' lengths."""
    return struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]


def cut(
    path: Path, begin: float, end: float, kinds: tuple[bytes, ...] = (b"vide", b"soun")
) -> None:
    """Show only a part of the tracks, in seconds, by their edit lists, as `-c copy` cuts do."""
    data = bytearray(path.read_bytes())
    for kind in kinds:
        first, last = _track(bytes(data), kind)
        at = data.index(b"elst", first, last) + 8
        scale = struct.unpack_from(">I", data, data.index(b"mdhd", first, last) + 16)[0]
        edits, _, media_time = struct.unpack_from(">3I", data, at)
        assert edits == 1
        length = round(_scale(bytes(data)) * (end - begin))
        struct.pack_into(">3I", data, at, 1, length, media_time + round(begin * scale))
    path.write_bytes(data)


def delay(path: Path, kind: bytes, seconds: float) -> None:
    """Begin a track later: an empty edit in place of one that is named by its length alone."""
    data = bytearray(path.read_bytes())
    first, last = _track(bytes(data), kind)
    at = data.index(b"elst", first, last)
    size = struct.unpack_from(">I", data, at - 4)[0]
    _, length, media_time, speed = struct.unpack_from(">IIiI", data, at + 8)
    edits = struct.pack(
        ">IIiIIiI", 2, round(_scale(bytes(data)) * seconds), -1, 1 << 16, length, media_time, speed
    )
    new = struct.pack(">I4sI", 12 + len(edits), b"elst", 0) + edits
    grown = len(new) - size
    data[at - 4 : at - 4 + size] = new
    for parent in (b"edts", b"trak", b"moov"):  # moov stands behind the media: no offset moves
        where = data.rindex(parent, 0, at) - 4
        struct.pack_into(">I", data, where, struct.unpack_from(">I", data, where)[0] + grown)
    path.write_bytes(data)


def orient(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the display matrix of the picture: x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    first, last = _track(bytes(data), b"vide")
    at = data.index(b"tkhd", first, last) + 4 + 40
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
