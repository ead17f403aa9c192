"""The whole job on made-up files, as a person runs it."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.size import REPO
from checks.result import Row


def check() -> Iterator[Row]:
    """Raises RuntimeError, with its last words, if the demo does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "justdubit_jax.demo", "--workdir", folder]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        yield Row("preprocess, train, dub: made-up files", time.perf_counter() - start, "s")
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        dubbed = Path(folder) / "dubbed.mp4"
        yield Row("dubbed.mp4", dubbed.stat().st_size / 1e3, "kB")
