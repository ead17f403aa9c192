"""A table of rows as people have it: JSON, JSON lines, CSV or TSV, in the encodings they come in.

A row that cannot be read whole is a fault by its line, and does not cost the others.
"""

import codecs
import csv
import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from justdubit_jax.errors import InputError

_JSON = (".json", ".jsonl", ".ndjson")
_CELLS = (".csv", ".tsv")
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_MARKS = (  # the longer ones first: UTF-16's begins UTF-32's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """The cells of a row by column, and its place in the file: "line 3", in a JSON list "row 3"."""

    place: str
    cells: Mapping[str, object]


@dataclasses.dataclass
class Records:
    """What a table holds. `faults` are the rows that cannot be read, `notes` what was assumed."""

    columns: list[str]
    records: list[Record] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    separator: str = ""  # in words; empty for JSON

    def column(self, name: str) -> str | None:
        """The column of that name, else the only one that differs in capitals and spaces."""
        same = [column for column in self.columns if column == name]
        same = same or [column for column in self.columns if _normal(column) == _normal(name)]
        if len(same) > 1:
            raise InputError(f"{len(same)} columns are named {name!r}")
        return same[0] if same else None


def read_records(path: Path, wanted: Sequence[str]) -> Records:
    """The rows of a table; `wanted` columns tell what separates the cells and what is a row.

    Raises InputError, without the path, where the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in _JSON + _CELLS:
        raise InputError("a data set is a .json, .jsonl, .csv or .tsv file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"not a readable data set: {error.strerror}") from None
    text, note = _text(data)
    records = _from_cells(text, wanted) if kind in _CELLS else _from_json(text, wanted, kind)
    records.notes += [note] if note else []
    return records


def _text(data: bytes) -> tuple[str, str]:
    """A file's text, and what was assumed of its encoding."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and 0 in data[:1024]:  # UTF-16 without a mark: every other byte is zero
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding or "utf-8"), ""
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        text = data.decode("cp1252", "replace")
        # Of another encoding, or of two: accented letters stand alone in what cp1252 writes.
        mixed = any(ord(c) > 127 for c in data.decode("utf-8", "ignore"))
        if encoding or mixed or "\ufffd" in text or re.search(r"[^\W\d_a-zA-Z]{4}", text):
            message = f"line {line}: not {(encoding or 'utf-8').upper()}; save the table as UTF-8"
            raise InputError(message) from None
    odd = next(word for word in text.split() if any(ord(c) > 127 for c in word))
    return text, f"not UTF-8, taken as Windows-1252: {odd!r} in line {line} is right if it is that"


def _from_json(text: str, wanted: Sequence[str], kind: str) -> Records:
    try:
        value = json.loads(text, strict=False)  # a raw line break in a caption is kept
    except json.JSONDecodeError as error:
        if kind != ".json" or _begins_with_object(text):
            return _from_lines(text)
        raise InputError(f"line {error.lineno}: not JSON: {error.msg}") from None
    rows = _list_of_rows(value, wanted)
    return _of_objects([(f"row {number}", row) for number, row in enumerate(rows, 1)])


def _begins_with_object(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first, strict=False), Mapping)
    except json.JSONDecodeError:
        return False


def _list_of_rows(value: object, wanted: Sequence[str]) -> list[object]:
    """The rows of a JSON value: a list, the only list of objects in an object, or one row."""
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        if {_normal(name) for name in wanted} <= {_normal(str(key)) for key in value}:
            return [value]
        lists = {
            key: inner
            for key, inner in value.items()
            if isinstance(inner, list) and any(isinstance(row, Mapping) for row in inner)
        }
        if len(lists) == 1:
            return next(iter(lists.values()))
        if lists:
            raise InputError(f"expected one list of objects, found {', '.join(map(repr, lists))}")
    raise InputError("expected a list of objects, one a sample")


def _from_lines(text: str) -> Records:
    """JSON lines. They end at a line feed alone: U+2028 and the like may stand in a caption."""
    rows: list[tuple[str, object]] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", json.loads(line, strict=False)))
            except json.JSONDecodeError as error:
                faults.append(f"line {number}: not JSON: {error.msg} (column {error.colno})")
    if not rows:
        raise InputError(faults[0])
    records = _of_objects(rows)
    records.faults += faults
    return records


def _of_objects(rows: Sequence[tuple[str, object]]) -> Records:
    records = Records([])
    for place, row in rows:
        if isinstance(row, Mapping):
            records.columns += [str(key) for key in row if key not in records.columns]
            records.records.append(Record(place, row))
        else:
            records.faults.append(f"{place}: expected an object, got {type(row).__name__}")
    if rows and not records.records:
        raise InputError("expected a list of objects, one a sample")
    return records


def _from_cells(text: str, wanted: Sequence[str]) -> Records:
    lines = io.StringIO(text, newline="").readlines()
    start, separators = 0, tuple(_SEPARATORS)
    if lines and (said := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):  # Excel says it so
        start, separators = 1, (said[1],)
    while start < len(lines) and not lines[start].strip():
        start += 1

    def heading(separator: str) -> list[str]:
        try:
            return [cell.strip() for cell in next(_reader(lines[start:], separator), [])]
        except csv.Error as error:
            raise InputError(f"line {start + 1}: {error}") from None

    def rank(separator: str) -> tuple[int, int]:
        found = {_normal(cell) for cell in heading(separator)}
        return len(found & {_normal(name) for name in wanted}), len(found)

    separator = max(separators, key=rank)
    records = Records(heading(separator), separator=_SEPARATORS.get(separator, repr(separator)))
    _read_cells(records, lines, start, separator)
    return records


def _read_cells(records: Records, lines: Sequence[str], start: int, separator: str) -> None:
    """The rows below the heading, which stands at line `start`, counted from 0."""
    reader = _reader(lines[start:], separator)
    next(reader, None)
    broken = False
    while True:
        first = start + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # The reader goes on at the next line, which may lie within what was quoted.
            broken = True
            place = _place(first, start + reader.line_num)
            records.faults.append(f"{place}: quotes that do not match: {error}")
            continue
        if cells is None:
            return
        place = _place(first, start + reader.line_num)
        raw = "".join(lines[first : start + reader.line_num])
        if not any(cell.strip() for cell in cells):
            continue
        if broken and raw.count('"') % 2:
            records.faults.append(f"{place}: quotes that do not match")
        elif len(cells) > len(records.columns):
            records.faults.append(
                f"{place}: {len(cells)} cells under {len(records.columns)} columns; a cell with "
                f"{records.separator} in it stands in quotes"
            )
        else:
            values = [cell.strip().replace("\r\n", "\n") for cell in cells]
            records.records.append(Record(place, dict(zip(records.columns, values, strict=False))))


def _reader(lines: Sequence[str], separator: str):
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)


def _place(first: int, end: int) -> str:
    """Lines first to end, counted from 0 and without the last."""
    return f"line {first + 1}" if end <= first + 1 else f"lines {first + 1} to {end}"


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
