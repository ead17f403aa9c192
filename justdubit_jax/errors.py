"""The one exception that is a person's to fix."""


class InputError(Exception):
    """Bad input from a person: a file, flag, config key, clip or checkpoint.

    The message is one line that says what is wrong, where, and what was expected. Commands print
    it to stderr without a traceback and exit with code 2 (see cli.run).
    """
