"""Kernels as JAX's own profiler sees them run."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData


class Run(NamedTuple):
    """All runs of one kernel, or of one instruction of XLA's where that is known."""

    name: str
    instruction: str
    runs: int
    seconds: float


def profiled(run: Callable[[], Any]) -> list[Run]:
    """What runs on the first device while something is done; dearest first.

    Where there is no other device it is what XLA's threads on the CPU do.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for name, instruction, nanoseconds in _events(ProfileData.from_file(str(file))):
            found[name, instruction].append(nanoseconds)
    runs = [Run(*key, len(times), sum(times) / 1e9) for key, times in found.items()]
    return sorted(runs, key=lambda run: -run.seconds)


def _events(profile: Any) -> Iterator[tuple[str, str, int]]:
    """Name, XLA instruction and nanoseconds of each."""
    planes = list(profile.planes)
    of_device = [plane for plane in planes if plane.name.startswith("/device:GPU:0")]
    for plane in of_device or planes:
        for line in plane.lines:
            if of_device and not line.name.startswith("Stream"):
                continue  # what the profiler derives of the streams
            for event in line.events:
                facts = {key: value for key, value in event.stats if key is not None}
                if of_device or "hlo_op" in facts:
                    instruction = str(facts.get("hlo_op", ""))
                    yield event.name, instruction, int(event.duration_ns)
