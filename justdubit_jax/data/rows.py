"""The data set file: a JSON list, JSONL or CSV with a caption and clips a row."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from justdubit_jax.errors import InputError

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
    """One sample to make: its name (relative, without suffix) and its files."""

    name: str
    caption: str
    clip: Path
    reference: Path | None
    mask: Path | None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns; a data set without references or masks has None there."""

    caption: str
    clip: str
    reference: str | None
    mask: str | None


def read_rows(path: Path, columns: Columns) -> list[Row]:
    """Rows of a data set file; their paths are relative to its folder.

    Raises InputError naming the row and the column, or two rows of one name.
    """
    rows: dict[str, Row] = {}
    for number, record in enumerate(_records(path), 1):
        values = []
        for column in dataclasses.astuple(columns):
            value = record.get(column) if column else None
            if column and not (isinstance(value, str) and value.strip()):
                raise InputError(f"{path}: row {number}: no text in column {column!r}")
            values.append(value.strip() if value else None)
        caption, clip, reference, mask = values
        clip_path = path.parent / clip
        try:
            relative = clip_path.resolve().relative_to(path.parent.resolve())
        except ValueError:
            raise InputError(
                f"{path}: row {number}: {clip} is not below the data set's folder"
            ) from None
        name = relative.with_suffix("").as_posix()
        if name in rows:
            raise InputError(
                f"{path}: row {number}: {clip} and {rows[name].clip.name} of another row would "
                f"write the same files ({name}.safetensors)"
            )
        rows[name] = Row(
            name=name,
            caption=caption,
            clip=clip_path,
            reference=path.parent / reference if reference else None,
            mask=path.parent / mask if mask else None,
        )
    if not rows:
        raise InputError(f"{path}: the data set has no rows")
    return list(rows.values())


def _records(path: Path) -> list[Mapping[str, Any]]:
    readers = {
        ".json": lambda text: json.loads(text),
        ".jsonl": lambda text: [json.loads(line) for line in text.splitlines() if line.strip()],
        ".csv": lambda text: list(csv.DictReader(text.splitlines())),
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: a data set is a .json, .jsonl or .csv file")
    try:
        records = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a readable data set: {error}") from None
    if not isinstance(records, list) or not all(isinstance(r, Mapping) for r in records):
        raise InputError(f"{path}: expected a list of objects, one a sample")
    return records


def without_llm_prefix(caption: str) -> str:
    """The caption without what caption models tend to begin with."""
    prefix = next((p for p in _LLM_PREFIXES if caption.startswith(p)), "")
    return caption.removeprefix(prefix).strip()
