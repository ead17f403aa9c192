"""A config's values, each asked for by its key and checked as it is read."""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from justdubit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Values:
    """Readers of a ConfigDict: a dotted key in, the checked value out.

    What they refuse is an InputError of one sentence, "config: KEY is VALUE, expected ...".
    """

    config: ConfigDict

    def __getitem__(self, key: str) -> Any:
        """The value as it stands in the config."""
        value: Any = self.config
        for name in key.split("."):
            if not isinstance(value, ConfigDict) or name not in value:
                raise InputError(f"config: {key} is missing, expected as in configs/dub.py")
            value = value[name]
        return value

    def wrong(self, key: str, expected: str) -> InputError:
        """The complaint about a value, to be raised."""
        return _complaint(key, self[key], expected)

    def optional[T](self, read: Callable[..., T], *arguments: Any) -> T | None:
        """None where the key, the last of a reader's arguments, is None or an empty text."""
        return None if self[arguments[-1]] in (None, "") else read(*arguments)

    def flag(self, key: str) -> bool:
        if not isinstance(self[key], bool):
            raise self.wrong(key, "True or False")
        return self[key]

    def text(self, key: str) -> str:
        if not isinstance(self[key], str):
            raise self.wrong(key, "a text")
        return self[key]

    def texts(self, key: str) -> tuple[str, ...]:
        value = self[key]
        if not _is_list(value) or not all(isinstance(text, str) for text in value):
            raise self.wrong(key, "a tuple of texts")
        return tuple(value)

    def must_be(self, key: str, expected: Any, why: str = "") -> None:
        """Refuses every value but one."""
        if self[key] != expected:
            raise self.wrong(key, f"{expected!r}: {why}" if why else repr(expected))

    def one_of[T](self, key: str, allowed: Sequence[T]) -> T:
        return self.meaning(key, {value: value for value in allowed})

    def meaning[T](self, key: str, meanings: Mapping[Any, T]) -> T:
        """What the value stands for."""
        for value, meaning in meanings.items():
            if self[key] == value:
                return meaning
        raise self.wrong(key, f"one of {', '.join(map(str, meanings))}")

    def at_least(self, low: float, key: str) -> float:
        """A finite number."""
        if not _is_finite(self[key]) or self[key] < low:
            raise self.wrong(key, f"a number of at least {low}")
        return self[key]

    def within(self, low: float, high: float, key: str) -> float:
        """A number between two, both included."""
        if not _is_finite(self[key]) or not low <= self[key] <= high:
            raise self.wrong(key, f"a number from {low} to {high}")
        return self[key]

    def below(self, high: float, key: str) -> float:
        """A number from 0 to below `high`."""
        if not _is_finite(self[key]) or not 0 <= self[key] < high:
            raise self.wrong(key, f"a number from 0 to below {high}")
        return self[key]

    def whole(self, low: int, key: str, high: float = math.inf) -> int:
        """A whole number of at least `low`, and at most `high`."""
        if not _is_whole(self[key]) or not low <= self[key] <= high:
            limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
            raise self.wrong(key, f"a whole number {limits}")
        return self[key]

    def whole_numbers(self, key: str) -> tuple[int, ...]:
        if not _is_list(self[key]) or not all(map(_is_whole, self[key])):
            raise self.wrong(key, "a tuple of whole numbers")
        return tuple(self[key])

    def existing_path(self, key: str) -> Path:
        """A file or folder; `~` is the user's home."""
        if self[key] in (None, ""):
            raise not_given(key)
        return _existing(key, self[key])

    def existing_paths(self, key: str) -> tuple[Path, ...]:
        return tuple(_existing(f"{key}[{n}]", path) for n, path in enumerate(self.texts(key)))

    def pairs(self, key: str) -> tuple[tuple[str, float], ...]:
        """Names with finite numbers, as in (("std", 1.0),)."""
        try:
            found = tuple((str(name), float(number)) for name, number in self[key])
        except (TypeError, ValueError, OverflowError):
            found = (("", math.nan),)
        if not all(math.isfinite(number) for _, number in found):
            raise self.wrong(key, "pairs of a name and a number, such as (('std', 1.0),)")
        return found

    def known_pairs(self, key: str, known: Sequence[str]) -> dict[str, float]:
        """The same, of these names only."""
        found = dict(self.pairs(key))
        if not found.keys() <= set(known):
            raise self.wrong(key, f"no other names than {', '.join(known)}")
        return found


def _complaint(key: str, value: Any, expected: str) -> InputError:
    return InputError(f"config: {key} is {value!r}, expected {expected}")


def not_given(key: str) -> InputError:
    """The complaint about a path that has no default."""
    return InputError(f"config: {key} is not given, expected --config.{key}=PATH")


def _existing(key: str, value: Any) -> Path:
    path = Path(value).expanduser() if isinstance(value, str | os.PathLike) else None
    if path is None or not path.exists():
        raise _complaint(key, value, "a file or folder that exists")
    return path


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and value == value and value not in (math.inf, -math.inf)  # nan is not nan
