"""What a crossed wire is, and how one is tried: alone, in a copy of the tree, against its tests."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from justdubit_jax.errors import InputError

Verdict = Literal["caught", "survived", "not run"]

# Of pytest's exit codes, the one that says that tests ran and failed.
_PASSED, _FAILED = 0, 1
# What a test prints that fails because the fault is no working program at all.
_BROKEN = ("SyntaxError", "NameError", "ImportError", "ModuleNotFoundError", "UnboundLocalError")


class Fault(NamedTuple):
    """Words of a file, and what stands there instead while the tests that should notice run."""

    name: str
    file: str  # from the root of the tree
    old: str  # stands once in the file
    new: str
    tests: str  # pytest's arguments, of which at least one test must fail
    anew: bool = False  # whether the tests' demo is to be made with the fault in
    # Why the fault changes nothing that anyone could notice; its tests pass then.
    harmless: str = ""


class Found(NamedTuple):
    """What became of a fault; `by` is the first test that failed, or what was said instead.

    "not run" is a fault that is no program that runs, which no test has to notice.
    """

    verdict: Verdict
    by: str


def faulty(fault: Fault, tree: Path) -> str:
    """The fault's file with the fault in it; raises InputError if its words don't stand there once.

    The list has to follow the code: a fault that is no longer one is no longer guarded against.
    """
    text = (tree / fault.file).read_text() if (tree / fault.file).is_file() else ""
    if (count := text.count(fault.old)) != 1:
        raise InputError(
            f"{fault.name}: {fault.file}: its words stand there {count} times, expected once"
        )
    changed = text.replace(fault.old, fault.new)
    compile(changed, fault.file, "exec")
    return changed


def mark(fault: Fault, tree: Path) -> str:
    """Changes with the fault, its file and the tests that should notice it: a result's validity."""
    parts = [repr(fault), (tree / fault.file).read_text()]
    for argument in fault.tests.split():
        path = tree / argument.partition("::")[0]
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
        parts += [file.read_text() for file in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def copy_tree(tree: Path, to: Path) -> None:
    """What git tracks or would add of a tree, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name)


def make_demo(copy: Path, kept: Path) -> None:
    """The demo that tests read, made by the code as it is; so are the programs they compile."""
    kept.mkdir(parents=True, exist_ok=True)
    done = _tested(["tests/demo/test_demo.py"], copy, kept)
    if done.returncode != _PASSED:
        raise InputError(f"the tests of the demo do not pass as it is: {_tail(done)}")


def try_fault(fault: Fault, copy: Path, kept: Path) -> Found:
    """Run the fault's tests with the fault in a copy of the tree, and take it out again.

    `kept` is what make_demo left. Raises InputError if its words are not there.
    """
    changed, path = faulty(fault, copy), copy / fault.file
    right = path.read_text()
    path.write_text(changed)
    try:
        return _judged(_tested(fault.tests.split(), copy, None if fault.anew else kept))
    finally:
        path.write_text(right)


def _tested(
    tests: Sequence[str], copy: Path, kept: Path | None
) -> subprocess.CompletedProcess[str]:
    once = ("-x", "-q", "-n", "0", "--no-header", "--tb=short", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *once, *tests],
        cwd=copy,
        capture_output=True,
        text=True,
        # Before what is installed, which is the tree itself.
        env={
            **os.environ,
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TESTS_KEPT": str(kept or ""),
        },
    )


def _judged(done: subprocess.CompletedProcess[str]) -> Found:
    lines = done.stdout.splitlines()
    if done.returncode == _PASSED:
        return Found("survived", lines[-1] if lines else "")
    failed = list(_failures(lines))
    broken = [word for word in _BROKEN for line in lines if line.startswith(f"E   {word}")]
    if done.returncode != _FAILED or not failed or broken:
        return Found("not run", _tail(done))
    return Found("caught", failed[0])


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((done.stdout + done.stderr).splitlines()[-25:])


def _failures(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind in ("FAILED", "ERROR"):
            yield rest.partition(" - ")[0]
