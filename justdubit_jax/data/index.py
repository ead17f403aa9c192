"""`index.jsonl` in a `.precomputed` folder: the list of its samples, which is what training reads.

A line a sample: {"name": ..., "files": {"latents": {"latents": [16, 4, 2, 3]}, ...}}, the shapes of
the tensors in its file of each folder. A line is added when the last file of a sample is there, and
{"name": ..., "gone": true} before its files are touched again, so that what is listed is whole.
Of several lines of a name the last one holds; a line that a kill cut off counts for nothing.

Several processes may write at once: a line is one write under a lock, and `begin` and `finish`,
which write the list anew (sorted, one line a sample, behind a rename), hold the same lock. Each
names all rows of the data set and only ever adds samples of its own. Whatever else a line says
(hashes of sources and settings) stays with it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from justdubit_jax.data.precomputed import remove
from justdubit_jax.files import replacing

FILE = "index.jsonl"
LOCK = ".index.lock"

Files = Mapping[str, Mapping[str, tuple[int, ...]]]  # folder -> tensor -> shape


class Index:
    """The list of a folder, to write in."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, names: Collection[str]) -> list[str]:
        """Takes out what is not among `names`, the data set's; returns the names of that."""
        with self._locked():
            lines = _lines(self.folder) or {}
            others = sorted(lines.keys() - names)
            self._write({name: line for name, line in lines.items() if name in names})
        return others

    def remove(self, name: str) -> None:
        """Take a sample from the list, then its files from the folder."""
        self._append({"name": name, "gone": True})
        remove(self.folder, name)

    def add(self, name: str, files: Files) -> None:
        """A sample whose files are all there."""
        self._append({"name": name, "files": files})

    def finish(self) -> None:
        """Write the list anew, without what later lines took back."""
        with self._locked():
            self._write(_lines(self.folder) or {})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._locked(), (self.folder / FILE).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            cut_off = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut_off + _encoded(line))

    def _write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        with replacing(self.folder / FILE) as temporary:
            temporary.write_bytes(b"".join(_encoded(lines[name]) for name in sorted(lines)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, by the system if need be
            yield


def listed(folder: Path) -> dict[str, Files] | None:
    """The samples that a folder's list names, with the shapes in their files; None: no list."""
    lines = _lines(folder)
    return None if lines is None else {name: _files(line) for name, line in lines.items()}


def _lines(folder: Path) -> dict[str, dict[str, Any]] | None:
    path = folder / FILE
    if not path.is_file():
        return None
    lines: dict[str, dict[str, Any]] = {}
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut off by a kill: what it said had not happened yet
        lines.pop(line["name"], None)
        if not line.get("gone"):
            lines[line["name"]] = line
    return lines


def _files(line: Mapping[str, Any]) -> Files:
    return {
        folder: {tensor: tuple(map(int, shape)) for tensor, shape in tensors.items()}
        for folder, tensors in line["files"].items()
    }


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True).encode() + b"\n"
