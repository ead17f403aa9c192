"""Commands as a person runs them in a shell."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
COMPILE_FAST = "--xla_backend_optimization_level=0"  # the tests compile much and compute little
ONE_DEVICE = os.environ | {"XLA_FLAGS": COMPILE_FAST, "JAX_PLATFORMS": "cpu"}


def run_module(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...` on one device."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": COMPILE_FAST},
        capture_output=True,
        text=True,
        cwd=REPO,
    )
