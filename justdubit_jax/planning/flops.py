"""How many floating-point operations a program takes, and how many a GPU can do.

Counted are the matrix products and convolutions of a traced function, a multiply-add as two: so the
model itself says what it does, attention, adapters and their gradients included. The rest (norms,
modulation, rotary, the optimizer) is bound by memory, not arithmetic.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of one step."""

    model: float  # what the mathematics needs: the numerator of MFU
    total: float  # with what rematerialisation repeats: what the device does

    def times(self, samples: int) -> "StepFlops":
        return StepFlops(samples * self.model, samples * self.total)


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of a function on arrays of these shapes; what no result needs is not counted."""
    closed = jax.make_jaxpr(function)(*arguments)
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        return 2 * _size(equation.outvars[0]) * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel: Any = equation.invars[1].aval
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * math.prod(kernel.shape) / out_channels
    # What the equation runs, as loops, calls and rematerialised blocks do.
    inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


# Dense bfloat16 tensor-core peaks (float32 accumulation) by words of the device's name, in TFLOP/s,
# from NVIDIA's data sheets. The first that is found counts, so variants stand first.
_PEAKS = (
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H200 NVL", 835),
    ("GH200", 989),
    ("H100", 989),
    ("H200", 989),
    ("H800", 989),
    ("H20", 148),
    ("GB200", 2500),
    ("B200", 2250),
    ("A100", 312),
    ("A800", 312),
    ("A40", 150),
    ("A10G", 70),
    ("A10", 125),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
    ("RTX A6000", 155),
    ("RTX 6000 Ada", 364),
    ("RTX 5090", 210),
    ("RTX 4090", 165),
    ("RTX 3090", 71),
)


def peak_flops(device_kind: str) -> float | None:
    """Operations per second of a device by its jax name ("NVIDIA H100 80GB HBM3"), if known."""
    found = (peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_kind))
    return next((peak * 1e12 for peak in found), None)
