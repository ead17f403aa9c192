"""The machine: its versions, what JAX gets of its memory, and the rates that estimates rest on."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from checks.result import Row

from justdubit_jax.planning.cards import Card, card_of
from justdubit_jax.planning.memory import device_memory

_PACKAGES = "jax", "jaxlib", "flax", "jax-cuda12-plugin", "jax-cuda13-plugin"
_LIBRARIES = "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"


def check(small: bool) -> Iterator[Row]:
    for name in (*_PACKAGES, *_LIBRARIES):
        if found := _version(name):
            yield Row(name, found)
    yield Row("driver", driver() or "none")
    devices = jax.devices()
    one = devices[0]
    yield Row("devices", f"{len(devices)} x {one.device_kind}")
    yield Row("CUDA capability", str(getattr(one, "compute_capability", "none")))
    card = card_of(one.device_kind)
    limit = device_memory()
    if limit is not None:
        expected = card.limit / 1e9 if card else None
        yield Row("memory for JAX", limit / 1e9, "GB", expected=expected)
    yield from rates(card, small)


def rates(card: Card | None, small: bool) -> Iterator[Row]:
    """Products and copies by themselves, beside what the planner takes of this card."""
    side = 512 if small else 8192
    key = jax.random.key(0)
    for dtype, expected in ((jnp.bfloat16, card and card.products), (jnp.float32, None)):
        x = jax.random.normal(key, (side, side), dtype)
        seconds = timed(jax.jit(jnp.matmul), x, x)
        tflops = 2 * side**3 / seconds / 1e12
        name = f"product of {side} x {side} in {jnp.dtype(dtype).name}"
        yield Row(name, tflops, "TFLOP/s", expected=expected / 1e12 if expected else None)
    x = jax.random.normal(key, (side, side, 1 if small else 8), jnp.float32)
    seconds = timed(jax.jit(lambda x: x + 1), x)
    expected = card.memory_rate / 1e9 if card else None
    yield Row("copy, read and written", 2 * x.nbytes / seconds / 1e9, "GB/s", expected=expected)


def timed(run: Callable[..., Any], *arguments: Any, runs: int = 5) -> float:
    """Median seconds of a run, after one that is not counted."""
    jax.block_until_ready(run(*arguments))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def driver() -> str | None:
    """The NVIDIA driver's version, if there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
