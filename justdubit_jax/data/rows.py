"""The rows of a data set: a caption and the paths of its clips each."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from justdubit_jax.data.names import key, sample_name, unlike
from justdubit_jax.data.tables import Record, read_records
from justdubit_jax.errors import InputError, about

# What a caption model tends to begin with, for --remove-llm-prefixes (as in the torch trainer).
_LLM_PREFIXES = (
    *("In the video,", "In this video,", "In this video clip,", "In the clip,", "Caption:"),
    *(
        f"{subject} {verb}"
        for subject in (
            *("This video", "The video", "This clip", "The clip", "The animation"),
            *("This image", "The image", "This picture", "The picture"),
        )
        for verb in (
            *("shows", "depicts", "features", "captures", "highlights", "introduces", "presents"),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One sample to make: its name (see names.py), its files, and its place in the table."""

    name: str
    caption: str
    clip: Path
    reference: Path | None
    mask: Path | None
    place: str = ""  # "line 3"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns; a data set without references or masks has None there."""

    caption: str
    clip: str
    reference: str | None
    mask: str | None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a data set; rows that cannot be used, by their place; what was assumed."""

    rows: list[Row]
    faults: list[str]
    notes: list[str]


class MissingColumn(InputError):
    """A table lacks a column that was asked for; `role` is the field of Columns."""

    def __init__(self, message: str, role: str):
        super().__init__(message)
        self.role = role


def read_rows(path: Path, columns: Columns) -> list[Row]:
    """The rows of a data set file, of which none may be faulty.

    Raises InputError naming the row and what is wrong with it.
    """
    table = read_table(path, columns)
    if table.faults:
        raise InputError(table.faults[0])
    return table.rows


def read_table(path: Path, columns: Columns) -> Table:
    """The rows of a data set file; their paths are relative to its folder.

    A name depends on no other row, but where two would write the same files.
    Raises InputError where the file as a whole is wrong, MissingColumn where a column is.
    """
    wanted = {role: name for role, name in dataclasses.asdict(columns).items() if name}
    with about(path):
        records = read_records(path, list(wanted.values()))
        found = {role: records.column(name) for role, name in wanted.items()}
    missing = [role for role, column in found.items() if column is None]
    if missing and records.columns:
        listed = ", ".join(map(repr, records.columns))
        separated = f", separated by {records.separator}" if records.separator else ""
        message = f"{path}: no column {wanted[missing[0]]!r}; it has {listed}{separated}"
        raise MissingColumn(message, missing[0])

    rows: dict[str, Row] = {}
    faults = list(records.faults)
    for record in records.records:
        try:
            cells = {role: _text(record, column) for role, column in found.items() if column}
            row = _row(cells, record.place, path.parent, rows)
            rows[key(row.name)] = row
        except InputError as error:
            faults.append(f"{record.place}: {error}")
    if not rows and not faults:
        raise InputError(f"{path}: the data set has no rows")
    faults = [f"{path}: {fault}" for fault in faults]
    return Table(list(rows.values()), faults, [f"{path}: {note}" for note in records.notes])


def _row(cells: Mapping[str, str], place: str, folder: Path, others: Mapping[str, Row]) -> Row:
    """A row, named unlike the others before it, which are given by the keys of their names."""
    paths = {role: folder / text for role, text in cells.items() if role != "caption"}
    clip, reference, mask = (paths.get(role) for role in ("clip", "reference", "mask"))
    assert clip is not None
    caption, name = cells["caption"], sample_name(clip, folder)
    if first := others.get(key(name)):
        if (first.clip, first.caption, first.reference) == (clip, caption, reference):
            raise InputError(f"{clip}, its caption and reference are those of {first.place}")
        name = unlike(name, others, cells)
    return Row(name, caption, clip, reference, mask, place)


def _text(record: Record, column: str) -> str:
    value = record.cells.get(column)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"no text in column {column!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"half a character in column {column!r}: {value!r}") from None
    if "\0" in value:
        raise InputError(f"a zero byte in column {column!r}: {value!r}")
    return value.strip()


def without_llm_prefix(caption: str) -> str:
    """The caption without what caption models tend to begin with."""
    prefix = next((p for p in _LLM_PREFIXES if caption.startswith(p)), "")
    return caption.removeprefix(prefix).strip()
