"""The device and the dtype of a command, and what its compiler is told."""

from typing import Any

import jax
import jax.numpy as jnp

from justdubit_jax.errors import InputError
from justdubit_jax.models.attention import has_flash

# Of the programs that are convolutions in three dimensions: channels last on a GPU too, where XLA
# by itself lays them out first, and cuDNN then turns every one round in a workspace as large as its
# input and output together.
CONVOLUTIONS: dict[str, bool] = {"xla_gpu_force_conv_nhwc": True}


def set_device(name: str | None) -> None:
    if name is None:
        return
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "gpu") or (index and not index.isdigit()):
        raise InputError(f"command line: --device {name!r}: expected cpu, cuda or cuda:N")
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    try:
        jax.config.update("jax_default_device", jax.devices("gpu")[int(index or 0)])
    except (RuntimeError, IndexError):
        raise InputError(f"command line: --device {name}: there is no such device") from None


def without_flash() -> str | None:
    """What to say where a GPU has no flash attention; None where it has, or there is no GPU."""
    if jax.default_backend() != "gpu" or has_flash():
        return None
    return (
        f"{jax.devices()[0].device_kind} is older than Ampere: its attention is XLA's in float32, "
        "slower and with all scores in memory"
    )


def default_dtype() -> Any:
    """bfloat16 on an accelerator, float32 on a CPU, where bfloat16 is emulated."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
