"""What a LoRA file says of itself in its metadata."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path

from justdubit_jax.errors import InputError
from justdubit_jax.files import open_tensors
from justdubit_jax.models.transformer_config import CrossTimestep


@dataclasses.dataclass(frozen=True)
class LoRARecord:
    """How a LoRA was trained; the defaults are for files of other trainers, which say less."""

    rank: int | None = None
    alpha: float | None = None  # None where it is the rank
    cross_timestep: CrossTimestep | None = None  # None: as its base wants it
    reference_downscale_factor: int = 1  # for ltx-pipelines: references at full size
    step: int | None = None  # of the training

    def to_metadata(self) -> dict[str, str]:
        """Strings, as safetensors wants them; what is None is left out."""
        found = {name: getattr(self, name) for name in _READ}
        return {name: str(value) for name, value in found.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str | Path) -> "LoRARecord":
        """The inverse, for the metadata of `source`. Raises InputError for a bad value."""
        found = {}
        for name, (read, expected) in _READ.items():
            if (text := metadata.get(name)) is not None:
                try:
                    found[name] = read(text)
                except ValueError:
                    raise InputError(
                        f"{source}: metadata {name} is {text!r}, expected {expected}"
                    ) from None
        return cls(**found)


def read_record(path: Path) -> LoRARecord:
    """The record of a LoRA file. Raises InputError if the file cannot be read."""
    with open_tensors(path, "LoRA file") as file:
        return LoRARecord.from_metadata(file.metadata() or {}, path)


def _number(text: str) -> float:
    """An integer stays one, so that a record is written as it was read."""
    return int(text) if text.isdecimal() else float(text)


def _rule(text: str) -> str:
    if text not in _RULES:
        raise ValueError
    return text


_RULES = typing.get_args(CrossTimestep)
_WHOLE = int, "a whole number"
_READ = {
    "rank": _WHOLE,
    "alpha": (_number, "a number"),
    "cross_timestep": (_rule, " or ".join(_RULES)),
    "reference_downscale_factor": _WHOLE,
    "step": _WHOLE,
}
