"""How long a compiled program would take on a card, from its kernels; nothing is run."""

import csv
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from justdubit_jax.files import replacing
from justdubit_jax.planning.cards import Card
from justdubit_jax.planning.hlo import Program
from justdubit_jax.planning.kernels import COLLECTIVES, Kernel, kernels_of

_COLUMNS = (
    *("kind", "name", "loop", "times", "seconds", "waits"),
    *("operations", "bytes", "shape", "code"),
)


class Share(NamedTuple):
    """What kernels that are alike take together."""

    what: str
    seconds: float  # in which the program waits for them
    runs: int
    lines: tuple[str, ...]
    shape: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one run of a program on each of `devices` cards."""

    card: Card
    devices: int
    kernels: Sequence[Kernel]

    @property
    def seconds(self) -> float:
        return sum(kernel.total for kernel in self.kernels)

    @property
    def launches(self) -> int:
        return sum(kernel.times for kernel in self.kernels)

    @property
    def operations(self) -> float:
        """Of the products, attentions and convolutions that are run, on one card."""
        return sum(kernel.times * kernel.operations for kernel in self.kernels)

    @property
    def hidden(self) -> float:
        """Seconds of collectives beside which something else is done."""
        return sum(kernel.times * (kernel.seconds - kernel.waits) for kernel in self.kernels)

    def by_kind(self) -> list[Share]:
        """Dearest first."""
        return _shares(self.kernels, lambda kernel: (kernel.kind,))

    def dearest(self, count: int) -> list[Share]:
        """The dearest kernels, those of one line of code and shape together."""
        return _shares(self.kernels, lambda k: (k.kind, k.shape, k.lines))[:count]

    @property
    def collectives(self) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.kind in COLLECTIVES]

    def write_kernels(self, path: Path) -> None:
        """All kernels as CSV, in the order of the schedule."""
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(_COLUMNS)
            for k in self.kernels:
                numbers = k.times, f"{k.seconds:.3e}", f"{k.waits:.3e}", k.operations, int(k.bytes)
                table.writerow((k.kind, k.name, k.loop, *numbers, k.shape, " < ".join(k.lines)))


def estimate(text: str, card: Card, devices: int = 1) -> Estimate:
    """From a compiled program's `as_text()`."""
    return Estimate(card, devices, kernels_of(Program(text), card, devices))


def _shares(kernels: Sequence[Kernel], key: Callable[[Kernel], Hashable]) -> list[Share]:
    groups: dict[Hashable, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[key(kernel)].append(kernel)
    shares = [
        Share(
            what=same[0].kind,
            seconds=math.fsum(kernel.total for kernel in same),
            runs=sum(kernel.times for kernel in same),
            lines=same[0].lines,
            shape=same[0].shape,
        )
        for same in groups.values()
    ]
    return sorted(shares, key=lambda share: -share.seconds)
