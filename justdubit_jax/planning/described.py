"""Compiling for a card that is not there.

XLA's CUDA plugin compiles for a described card without a driver. What JAX asks of attached devices
while it traces is answered as that card would; nothing can be run.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from justdubit_jax.errors import InputError
from justdubit_jax.planning.cards import Card

_PLUGINS = "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"

# There is nothing to time kernels on, and untuned Triton tiles are bad where cuBLAS is not. The
# other two spare a third of the time, and change no kernel's size.
OPTIONS: dict[str, Any] = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_disable_gpuasm_optimizations": True,
    "xla_llvm_disable_expensive_passes": True,
}


def has_plugin() -> bool:
    """Whether the extra that compiles for GPUs is installed."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(name) is not None for name in _PLUGINS
    )


@contextlib.contextmanager
def described(card: Card, count: int) -> Iterator[Sequence[Any]]:
    """Devices of one machine with `count` of the card, for what is traced and compiled inside.

    Raises InputError where the extra is not installed.
    """
    if not has_plugin():
        raise InputError(
            "compiling for a card needs the extra: uv sync --extra cuda12 (or cuda13), "
            "about 5 GB, no driver"
        )
    capability = float(card.capability.rstrip("a"))
    answers = {
        "check_compute_capability": lambda least: capability >= float(least),
        "is_cuda_compute_capability_equal": lambda one: capability == float(one),
    }
    asked = {name: getattr(cudnn, name) for name in answers}
    cached = jax.config.jax_enable_compilation_cache
    try:
        # A program that was compiled without a device cannot be read back without one.
        jax.config.update("jax_enable_compilation_cache", False)
        for name, answer in answers.items():
            setattr(cudnn, name, answer)
        # The name is the topology's; slices x machines of a slice x devices of a machine.
        yield topologies.get_topology_desc(
            card.name,
            platform="cuda",
            topology=f"1x1x{count}",
            target_config=card.target_config(),
        ).devices
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        for name, function in asked.items():
            setattr(cudnn, name, function)
