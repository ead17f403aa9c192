"""The one exception that is a person's to fix."""

import contextlib
from collections.abc import Iterator


class InputError(Exception):
    """Bad input from a person: a file, flag, config key, clip or checkpoint.

    The message is one line that says what is wrong, where, and what was expected. Commands print
    it to stderr without a traceback and exit with code 2 (see cli.exiting).
    """


@contextlib.contextmanager
def about(subject: object) -> Iterator[None]:
    """Puts "SUBJECT: " before the message of an InputError that is raised inside.

    For what only the caller knows: the config key, the flag or the file that a value came from.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject}: {error}") from error
