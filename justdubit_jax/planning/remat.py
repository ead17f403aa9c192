"""What the backward pass keeps of the blocks in place of computing it again: as much as fits."""

from collections.abc import Mapping
from typing import Any

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.models.attention import Remat
from justdubit_jax.planning.memory import Program, compile_step, least_bytes
from justdubit_jax.training.prepare import Training, recomputing

# From what saves most time to what takes least memory; the last is taken whether it fits or not.
_CHOICES: tuple[Remat, ...] = ("queries", "keys", "attention", "full")

# Of the memory that a program may take: the compiler does not count the workspaces of cuBLAS and
# cuDNN, nor what lies unused between its arrays.
_SHARE = 0.95


def keeping_what_fits(
    training: Training,
    shape: SampleShape,
    limit: int | None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Training, Program | None]:
    """The training that recomputes least among those whose step for that shape fits into all but a
    twentieth of `limit` bytes, and its program if it was compiled.

    Decided by compiling, since XLA recomputes by its own choice what is beyond the device, and then
    more than is saved. What cannot fit by its own arrays is not compiled. Without a limit (the
    device does not tell its memory) everything is recomputed.
    """
    *choices, last = _CHOICES
    room = 0.0 if limit is None else _SHARE * limit
    for remat in choices:
        kept = recomputing(training, remat)
        if limit is None or least_bytes(kept, shape) >= room:
            continue
        program = compile_step(kept, shape, options)
        if program.plan.memory.total < room:
            return kept, program
    return recomputing(training, last), None
