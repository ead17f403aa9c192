"""A compiled program's text, read: computations, instructions, and the line of code of each."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

_SIZES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e8m0fnu"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    **dict.fromkeys(("s4", "u4"), 0.5),
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_TABLES = "FileNames", "FunctionNames", "FileLocations", "StackFrames"
_OPEN, _CLOSED = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and sizes of a value."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        return self.count * _SIZES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `attributes` is the text behind its operands."""

    name: str
    arrays: tuple[Array, ...]  # its result: one, or those of a tuple
    opcode: str
    operands: tuple[str, ...]  # names; of a parameter, its number
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def frame(self) -> int | None:
        """Number of its stack frame in the program's table."""
        found = re.search(r"\bstack_frame_id=(\d+)", self.attributes)
        return int(found[1]) if found else None

    def called(self, key: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Program:
    """The scheduled program of one device, from `Compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._tables: dict[str, dict[int, str]] = defaultdict(dict)
        self._read(text)

    def _read(self, text: str) -> None:
        current: dict[str, Instruction] = {}
        table = None
        for line in text.splitlines():
            if line in _TABLES:
                table = line
            elif table and (row := re.match(r"(\d+) (.*)", line)):
                self._tables[table][int(row[1])] = row[2].strip('"')
            elif not line.strip():
                table = None
            elif not line[0].isspace() and line.rstrip().endswith("{"):
                head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
                if head:
                    current = self.computations.setdefault(head[2], {})
                    self.entry = head[2] if head[1] else self.entry
            elif found := _instruction(line):
                current[found.name] = found

    def lines_of_code(self, frame: int | None, words: str) -> Iterator[str]:
        """`file.py:12 function` of the frames whose file has the words in its path, innermost
        first."""
        seen: set[int] = set()
        while frame and frame not in seen:
            seen.add(frame)
            row = _numbers(self._tables["StackFrames"].get(frame, ""))
            place = _numbers(self._tables["FileLocations"].get(row.get("file_location_id", 0), ""))
            file = self._tables["FileNames"].get(place.get("file_name_id", 0), "")
            function = self._tables["FunctionNames"].get(place.get("function_name_id", 0), "")
            if words in file:
                room = "/".join(file.split("/")[-2:])
                yield f"{room}:{place.get('line', 0)} {function.rpartition('.')[2]}"
            frame = row.get("parent_frame_id")


def _numbers(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line)
    if not found:
        return None
    rest = found[3]
    end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"[\w\-]+", rest)
    if not opcode:
        return None
    close = _closing(rest, opcode.end())
    inner = rest[opcode.end() + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", inner)
    return Instruction(
        name=found[2],
        arrays=tuple(_arrays(shape)),
        opcode=opcode[0],
        operands=(inner,) if opcode[0] == "parameter" else tuple(operands),
        attributes=rest[close + 1 :],
        is_root=bool(found[1]),
    )


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, sizes in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        if dtype in _SIZES:
            yield Array(dtype, tuple(int(n) for n in sizes.split(",") if n))


def _closing(text: str, begin: int) -> int:
    """Where the bracket that opens at `begin` closes."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] in _OPEN) - (text[place] in _CLOSED)
        if depth == 0:
            return place
    return len(text) - 1
