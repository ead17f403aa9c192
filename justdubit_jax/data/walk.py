"""The files in a `.precomputed` folder, as they lie there; links are followed."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from justdubit_jax.data import index
from justdubit_jax.data.precomputed import TENSORS
from justdubit_jax.files import is_temporary

_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Walked:
    """Names of the samples that have a file in a folder: its own, and behind linked folders.

    A linked folder of another `.precomputed` gives those that are in the list there.
    """

    own: set[str]
    linked: set[str]

    @property
    def names(self) -> set[str]:
        return self.own | self.linked


@dataclasses.dataclass(frozen=True)
class _There:
    """Where a linked folder leads: the list there, and what its names begin with."""

    listed: Collection[str]
    prefix: str


def files_below(folder: Path) -> Walked:
    """The files of a role."""
    walked = Walked(set(), set())
    if folder.is_dir():
        _walk(str(folder), "", walked.own, walked.linked, None, ())
    return walked


def _walk(
    folder: str,
    prefix: str,
    names: set[str],
    linked: set[str],
    there: _There | None,
    above: tuple[tuple[int, int], ...],
) -> None:
    status = os.stat(folder)
    own = status.st_dev, status.st_ino
    if own in above:  # a link to where it lies
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_dir():
                inner = there and _There(there.listed, f"{there.prefix}{name}/")
                into = names
                if entry.is_symlink():
                    inner, into = _behind(Path(entry.path)), linked
                _walk(entry.path, f"{prefix}{name}/", into, linked, inner, (*above, own))
            elif name.endswith(_SUFFIX) and name != _SUFFIX and not is_temporary(name):
                stem = name.removesuffix(_SUFFIX)
                if there is None or there.prefix + stem in there.listed:
                    names.add(prefix + stem)


def _behind(link: Path) -> _There | None:
    """The list of the folder that a link leads into, if there is one."""
    real = link.resolve()
    for root in real.parents:
        role, *inside = real.relative_to(root).parts
        if role in TENSORS and (listed := index.listed(root)) is not None:
            return _There(listed, "".join(f"{part}/" for part in inside))
    return None
