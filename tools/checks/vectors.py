"""The golden vectors of the tests on this machine: the worst tensor of each, by its limit."""

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import verify_parity
from checks.result import Row
from parity import table
from parity.golden import Golden

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def float32(folder: Path) -> Iterator[Row]:
    yield from _rows(folder, jnp.float32)


def bfloat16(folder: Path) -> Iterator[Row]:
    yield from _rows(folder, jnp.bfloat16)


def _rows(folder: Path, dtype: object) -> Iterator[Row]:
    for path in sorted(folder.glob("*.safetensors")):
        found = rows(path, dtype)
        if not found:
            continue
        worst = max(found, key=_badness)
        failed = sum(row.verdict != "ok" for row in found)
        note = f"{worst.tensor}, the worst of {len(found)}; {failed} beyond their limits"
        yield Row(path.stem, worst.error, limit=worst.limit, note=note)


def rows(path: Path, dtype: object) -> list[table.Row]:
    """Every tensor of a golden file that is compared, with models in that dtype."""
    golden = Golden.read(path, dtype)
    kind = verify_parity.kind_of(golden)
    wanted = verify_parity.asked(golden, kind)
    if kind is None or not wanted:
        return []
    got = verify_parity.compute(golden, kind, wanted)
    return list(verify_parity.compare(golden, kind, wanted, got))


def _badness(row: table.Row) -> tuple[bool, float]:
    """Beyond its limit or not, and how much of it it takes."""
    return row.verdict != "ok", row.error / row.limit if row.limit else 0.0
