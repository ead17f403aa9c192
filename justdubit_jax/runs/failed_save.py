"""A save that fails is one error, raised where it is waited for, and nothing else on the terminal.

Orbax and TensorStore write in threads of their own. When one of them fails, Orbax logs the error in
each, and TensorStore calls event loops that are closed by then: in part before whoever waits for
the save can know of it, in part long after. So this is left out from the beginning of a save until
it is complete, and for good once it has failed. Errors of anything else are printed as ever.
"""

import asyncio
import logging
import sys
import warnings
from pathlib import Path

import orbax.checkpoint as ocp

# By what a record is known as a save's: Orbax's source files, TensorStore's kind of database.
_ORBAX, _DATABASE = str(Path(ocp.__file__).parent), "OCDBT database"
_LOGGERS = "absl", "asyncio"  # where the errors of Orbax's threads and of its tasks go


class ThreadErrors:
    """What the threads of a save print when it fails, left out."""

    def __init__(self) -> None:
        self._for_good = False

    def begin(self) -> None:
        """A save begins."""
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_is_of_another)
        if sys.unraisablehook != self._unraisable:
            self._before, sys.unraisablehook = sys.unraisablehook, self._unraisable

    def written(self) -> None:
        """TensorStore is done: all that may fail now is Orbax's last step."""
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._before

    def complete(self) -> None:
        """Nothing more is to come of the save, unless one has failed before."""
        if self._for_good:
            return
        self.written()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(_is_of_another)

    def failed(self) -> None:
        """The save has failed: its threads may fail until the process ends."""
        self._for_good = True
        tasks = "coroutine 'async_serialize"  # that Orbax leaves behind
        warnings.filterwarnings("ignore", tasks, RuntimeWarning)

    def _unraisable(self, report: "sys.UnraisableHookArgs") -> None:
        # Called from outside Python, since nothing is above it in the traceback.
        first = report.exc_traceback and report.exc_traceback.tb_frame.f_code
        if first is not asyncio.BaseEventLoop.call_soon_threadsafe.__code__:
            self._before(report)


def _is_of_another(record: logging.LogRecord) -> bool:
    """Whether a record is no error of a save, by where it is from and what it speaks of."""
    message = record.getMessage()
    of_a_save = record.pathname.startswith(_ORBAX) or _ORBAX in message or _DATABASE in message
    return record.levelno < logging.ERROR or not of_a_save
