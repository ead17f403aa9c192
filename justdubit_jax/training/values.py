"""Single values of a config, checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justdubit_jax.errors import InputError


def existing(value: str | None, key: str) -> Path:
    if not value:
        raise InputError(f"config: {key} is missing: give it as --config.{key}=PATH")
    path = Path(value).expanduser()
    if not path.exists():
        raise InputError(f"config: {key}: {path} does not exist")
    return path


def optional_path(value: str | None, key: str) -> Path | None:
    return existing(value, key) if value else None


def one_of(section: Any, key: str, allowed: Sequence[str]) -> str:
    value = section[key.rpartition(".")[2]]
    if value not in allowed:
        raise InputError(f"config: {key} is {value!r}, expected one of {', '.join(allowed)}")
    return value


def at_least(limit: int, value: Any, key: str) -> Any:
    if not value >= limit:
        raise InputError(f"config: {key} is {value}, expected at least {limit}")
    return value


def within(low: float, high: float, value: Any, key: str) -> Any:
    if not low <= value <= high:
        raise InputError(f"config: {key} is {value}, expected {low} to {high}")
    return value


def pairs(value: Any, key: str) -> tuple[tuple[str, float], ...]:
    try:
        return tuple((str(name), float(number)) for name, number in value)
    except (TypeError, ValueError):
        raise InputError(
            f"config: {key} is {value!r}, expected pairs (('name', number), …)"
        ) from None


def known_pairs(value: Any, key: str, known: Sequence[str]) -> dict[str, float]:
    found = dict(pairs(value, key))
    for name in found:
        if name not in known:
            raise InputError(f"config: {key}: unknown {name!r}, expected {', '.join(known)}")
    return found
