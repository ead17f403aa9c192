"""The name of a sample: the path of its files below each folder of `.precomputed`.

It is the clip's path below the data set's folder, without suffix, as in the torch trainer. Links
are not resolved, since a hub's cache is made of them. A clip that lies elsewhere is named by its
stem and a hash of its path, a part that is too long by its beginning and a hash, so that a name
never leads out of a folder and always fits into a file system.
"""

import hashlib
import os
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePath

OUTSIDE = "outside"
_LONGEST = 100  # bytes of a part; encrypted home folders take 143, with suffixes of ours
_HASHED = 12


def sample_name(clip: Path, folder: Path) -> str:
    """The name of a clip of a data set in `folder`."""
    parts = _below(clip, folder)
    if parts is None:
        parts = [OUTSIDE, f"{_short(_stem(clip.name))}-{digest(os.path.abspath(clip))}"]
    else:
        parts = [*parts[:-1], _stem(parts[-1])]
    return "/".join(map(_short, parts))


def unlike(name: str, taken: Collection[str], *of_row: object) -> str:
    """The name, or with a hash of what the row says where another row has it.

    `taken` are the `key`s of those that are given away.
    """
    if key(name) not in taken:
        return name
    head, slash, stem = name.rpartition("/")
    return f"{head}{slash}{_short(stem)}-{digest(*of_row)}"


def key(name: str) -> str:
    """Equal for names that some file system takes for one: in capitals or in composed accents."""
    return unicodedata.normalize("NFC", name).casefold()


def digest(*parts: object) -> str:
    text = "\n".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:_HASHED]


def _below(clip: Path, folder: Path) -> list[str] | None:
    """The parts of a clip's path below a folder, as it is written or behind links."""
    ways = (
        (Path(os.path.abspath(clip)), Path(os.path.abspath(folder))),
        (Path(os.path.realpath(clip.parent)) / clip.name, Path(os.path.realpath(folder))),
    )
    for path, base in ways:
        if path != base and path.is_relative_to(base):
            return list(path.relative_to(base).parts)
    return None


def _stem(name: str) -> str:
    stem = PurePath(name).stem
    return stem if stem.strip(".") else name.replace(".", "_") or "clip"


def _short(part: str) -> str:
    data = part.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST:
        return part
    kept = data[: _LONGEST - _HASHED - 1].decode("utf-8", "ignore")
    return f"{kept}-{digest(part)}"
