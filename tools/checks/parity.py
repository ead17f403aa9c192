"""The golden vectors of the tests on this machine: the worst tensor of each, by its limit."""

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import verify_parity
from checks.result import Row
from parity.golden import Golden

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def float32(folder: Path) -> Iterator[Row]:
    yield from _rows(folder, jnp.float32)


def bfloat16(folder: Path) -> Iterator[Row]:
    yield from _rows(folder, jnp.bfloat16)


def _rows(folder: Path, dtype: object) -> Iterator[Row]:
    for path in sorted(folder.glob("*.safetensors")):
        golden = Golden.read(path, dtype)
        kind = verify_parity.kind_of(golden)
        wanted = verify_parity.asked(golden, kind)
        if kind is None or not wanted:
            continue
        got = verify_parity.compute(golden, kind, wanted)
        rows = list(verify_parity.compare(golden, kind, wanted, got))
        worst = max(rows, key=lambda row: (row.error != row.error, row.error - row.limit))
        failed = sum(row.verdict != "ok" for row in rows)
        note = f"{worst.tensor}, the worst of {len(rows)}; {failed} beyond their limits"
        yield Row(path.stem, worst.error, limit=worst.limit, note=note)
