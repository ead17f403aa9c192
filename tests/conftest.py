"""Set-up of every test: eight CPU devices, exact float32 products, no silent rank promotion.

`demo` is one run of the demo, as a person runs it; tests that need real files read them there.
`four_steps` is a short training on its files, for tests of what a run leaves.

Where the environment names a folder in TESTS_KEPT, the demo and compiled programs are kept there:
who runs some tests many times, as tools/crossed_wires.py does, makes them once.
"""

import os
from pathlib import Path

import jax
import pytest
from filelock import FileLock
from helpers.commands import COMPILE_FAST, run_module

# Read when the first array is made.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")
# An array of fewer axes is not stretched silently: which axis was meant is written out.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process makes the demo first; the other has tests that do without it meanwhile."""
    waiting = {item.path for item in items if "demo" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.stem != "test_demo", item.path in waiting))


@pytest.fixture(scope="session")
def demo(kept_folder) -> Path:
    """The workdir of a finished demo, with what it printed in `printed.txt`. Not to be changed."""
    workdir = kept_folder / "demo"
    with FileLock(kept_folder / "demo.lock"):
        if not (workdir / "printed.txt").exists():
            done = run_module("justdubit_jax.demo", "--workdir", workdir)
            assert done.returncode == 0, done.stderr[-3000:]
            (workdir / "printed.txt").write_text(done.stdout)
    return workdir


@pytest.fixture(scope="session")
def four_steps(demo, shared_folder) -> Path:
    """A run of four steps with dropout and a running mean, each saved. Not to be changed."""
    # Not above: this file is read before the annotations of what is imported are checked.
    from helpers import toy

    output = shared_folder / "four_steps"
    with FileLock(shared_folder / "four_steps.lock"):
        if not toy.RunFolder(output).lora(4).exists():
            toy.train.main(toy.config(demo, output, *toy.FOUR, *toy.EXTRAS))
    return output


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder of this run of the tests, the same in both of its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def kept_folder(shared_folder) -> Path:
    """Where the demo and compiled programs lie: the shared folder, or TESTS_KEPT."""
    kept = os.environ.get("TESTS_KEPT")
    return Path(kept) if kept else shared_folder


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(kept_folder):
    """What one test, or a program that it starts, compiles, the others find."""
    folder, least = str(kept_folder / "compiled"), 0.3
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(least)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
