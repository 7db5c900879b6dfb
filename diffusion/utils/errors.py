"""Errors that a user can correct.

Library code raises them with one sentence: what was found, what was expected, what to do.
`diffusion.cli.parser.run` prints that sentence and exits with 2; anything else keeps its traceback, because it is our bug.
"""


class InputError(ValueError):
    """A value, file or option that cannot be used as it is."""


class MissingError(InputError, FileNotFoundError):
    """Something named by the user that is not there; the message says what was looked for and where."""

    __str__ = Exception.__str__  # OSError's own __str__ expects errno arguments
