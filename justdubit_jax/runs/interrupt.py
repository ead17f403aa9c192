"""SIGTERM, which schedulers send before they kill: noticed between steps."""

import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """While the block lasts, SIGTERM asks for a stop; where it is not `guarded`, it exits with 0.

    With several processes JAX's preemption service takes the signal, and `reached` tells all of
    them at the same step.
    """

    def __init__(self) -> None:
        self.asked = False
        self.guarded = False

    def __enter__(self) -> "Interrupt":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step. Call it after every step."""
        if jax.process_count() == 1:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.guarded:  # nothing to save yet
            sys.exit(0)
        self.asked = True
