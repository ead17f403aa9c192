"""Ctrl-C, and SIGTERM, which schedulers send before they kill: noticed between steps."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = signal.SIGINT, signal.SIGTERM


class Interrupt:
    """While the block lasts, either signal asks for a stop, which `tell` is told of.

    Where it is not `guarded`, since there is nothing to save yet, it ends the process: Ctrl-C as
    ever, SIGTERM with `term_code`. A second Ctrl-C ends it anyway. With several processes JAX's
    preemption service takes SIGTERM, and `reached` tells all of them at the same step.
    """

    def __init__(self, tell: Callable[[str], None] = lambda line: None, term_code: int = 143):
        self.asked = False
        self.guarded = False
        self.code = term_code  # to end with after a stop that was asked for
        self._tell, self._term_code = tell, term_code
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if jax.process_count() == 1:
            # What was started to ignore Ctrl-C, as in the background of a script, goes on to.
            heard = [one for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
            self._before = {one: signal.signal(one, self._handle) for one in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step. Call it after every step."""
        if jax.process_count() == 1:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        by_hand = number == signal.SIGINT
        if by_hand and (self.asked or not self.guarded):
            raise KeyboardInterrupt
        if not self.guarded:
            sys.exit(self._term_code)
        self.asked, self.code = True, 130 if by_hand else self._term_code
        again = "; Ctrl-C again ends at once" if by_hand else ""
        self._tell(f"stopping: this step is finished and saved{again}")
