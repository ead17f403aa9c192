"""What the backward pass keeps of the blocks in place of computing it again: as much as fits."""

from justdubit_jax.data.batch import SampleShape
from justdubit_jax.models.attention import Remat
from justdubit_jax.planning.memory import compile_step, least_bytes
from justdubit_jax.training.prepare import Training, recomputing

# From what saves most time to what takes least memory; the last is taken whether it fits or not.
_CHOICES: tuple[Remat, ...] = ("queries", "keys", "attention", "full")


def keeping_what_fits(training: Training, shape: SampleShape, limit: int | None) -> Training:
    """The training that recomputes least among those whose step for that shape fits `limit` bytes.

    Decided by compiling, since XLA recomputes by its own choice what is beyond the device, and then
    more than is saved. What cannot fit by its own arrays is not compiled. Without a limit (the
    device does not tell its memory) everything is recomputed.
    """
    *choices, last = _CHOICES
    if limit is None:
        return recomputing(training, last)
    for remat in choices:
        kept = recomputing(training, remat)
        if least_bytes(kept, shape) < limit and compile_step(kept, shape).plan.memory.total < limit:
            return kept
    return recomputing(training, last)
