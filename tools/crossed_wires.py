"""Do the tests notice a crossed wire? Small named faults, each put in alone.

  python tools/crossed_wires.py [NAME ...] [--sample N --seed TEXT] [--jobs 2] [--record FILE]
  python tools/crossed_wires.py --list

The mathematics of each module is guarded by golden vectors; what lies between the modules is not
seen by them: an argument dropped, two swapped, a default in the place of a flag. A mutation library
changes operators everywhere and knows no such fault, nor which tests should notice it; this is a
list of them (tools/wires/), each with the words of a file that it replaces and the tests that must
fail then. One that changes nothing is listed with its reason, and its tests must pass.

Prints a table, and ends with exit code 1 where a fault survived. With --record, results are kept
as they come, and those whose fault, file and tests have not changed are taken from there. --sample
takes N faults by the seed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from wires.every import FAULTS
from wires.fault import Fault, Found, copy_tree, faulty, make_demo, mark, try_fault

from justdubit_jax import cli
from justdubit_jax.errors import InputError
from justdubit_jax.files import replacing

REPO = Path(__file__).parents[1]


def main() -> None:
    args = parse_arguments()
    console = Console(highlight=False, soft_wrap=True)
    chosen = choose(args.names, args.sample, args.seed)
    for fault in FAULTS:  # all of them: one that the code has left behind guards nothing
        faulty(fault, REPO)
    if args.list:
        for fault in chosen:
            console.print(f"{fault.name}: {fault.file}: {fault.tests}", markup=False)
        return
    record = Record(args.record)
    known = {fault.name: found for fault in chosen if (found := record.of(fault))}
    missed, started = [], time.monotonic()
    for done, (fault, found) in enumerate(run(chosen, known, args.jobs), 1):
        if found.verdict != "not run":
            record.add(fault, found)
        expected = "survived" if fault.harmless else "caught"
        if found.verdict != expected:
            missed.append(fault.name)
        said = fault.harmless or found.by
        seconds = time.monotonic() - started
        where = f"{done}/{len(chosen)} {seconds:.0f} s"
        console.print(f"{where}  {found.verdict:9} {fault.name}: {said}", markup=False)
    if missed:
        console.print(f"{len(missed)} of {len(chosen)} not as they should be: {', '.join(missed)}")
        sys.exit(1)
    console.print(f"{len(chosen)} of {len(chosen)} as they should be")


def choose(names: Sequence[str], sample: int | None, seed: str) -> list[Fault]:
    """The faults by name, or a sample of all, or all. Raises InputError on an unknown name."""
    by_name = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in by_name:
            raise InputError(f"{name}: no such fault; --list shows them")
    chosen = [by_name[name] for name in names] or list(FAULTS)
    return chosen if sample is None else random.Random(seed).sample(chosen, sample)


def run(
    faults: Sequence[Fault], known: dict[str, Found], jobs: int
) -> Iterator[tuple[Fault, Found]]:
    """Each fault with what became of it, as it is known; every job has a copy of its own."""
    for fault in faults:
        if fault.name in known:
            yield fault, known[fault.name]
    left = [fault for fault in faults if fault.name not in known]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        kept = Path(folder) / "kept"
        for number in range(min(jobs, len(left))):
            copy = Path(folder) / str(number)
            copy_tree(REPO, copy)
            copies.put(copy)
            if not kept.exists():
                make_demo(copy, kept)

        def one(fault: Fault) -> Found:
            copy = copies.get()
            try:
                return try_fault(fault, copy, kept)
            finally:
                copies.put(copy)

        futures = {pool.submit(one, fault): fault for fault in left}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Record:
    """Results on disk, by what they are results of; nothing is kept without a path."""

    def __init__(self, path: Path | None):
        self._path = path
        self._found: dict[str, list[str]] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text())

    def of(self, fault: Fault) -> Found | None:
        found = self._found.get(mark(fault, REPO))
        return None if found is None else Found(*found)  # pyright: ignore[reportArgumentType]

    def add(self, fault: Fault, found: Found) -> None:
        self._found[mark(fault, REPO)] = list(found)
        if self._path is not None:
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps(self._found, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        prog="python tools/crossed_wires.py", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the faults, and stop")
    parser.add_argument("--sample", type=int, help="so many of them, chosen by --seed")
    parser.add_argument("--seed", default="", help="e.g. a commit")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at once")
    parser.add_argument("--record", type=Path, help="JSON file to keep results in")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: expected at least 1")
    if args.sample is not None and not 1 <= args.sample <= len(args.names or FAULTS):
        parser.error(f"--sample {args.sample}: expected 1 to {len(args.names or FAULTS)}")
    return args


if __name__ == "__main__":
    cli.exiting(main)
