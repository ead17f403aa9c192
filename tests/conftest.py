"""Set-up of every test: eight CPU devices and exact float32 matrix products.

`demo` is one run of the demo, as a person runs it; tests that need real files read them there.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

# The tests compile much and compute little. Read when the first array is made.
COMPILE_FAST = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")


def run_module(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...` on one device, as in a shell."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": COMPILE_FAST},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The workdir of a finished demo, with what it printed in `printed.txt`. Not to be changed."""
    workdir = tmp_path_factory.mktemp("demo")
    done = run_module("justdubit_jax.demo", "--workdir", workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    (workdir / "printed.txt").write_text(done.stdout)
    return workdir


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Runs of the same training in one process compile it once."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
