"""Errors that a user can correct.

Library code raises them with one sentence: what was found, what was expected, what to do.
`diffusion.cli.parser.run` prints that sentence and exits with 2; anything else keeps its traceback, because it is our bug.
"""

from __future__ import annotations

import errno

# Errors of the system rather than of this program: full and read-only disks, rights, files in the way of folders ...
SYSTEM_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE),
        *(errno.ENFILE, errno.EBUSY),
    )
)


class InputError(ValueError):
    """A value, file or option that cannot be used as it is.

    Examples:
        >>> import pixcell
        >>> try:
        ...     pixcell.open_run("output/256", precision="float16")
        ... except pixcell.InputError as error:
        ...     print(error)
        --precision float16: expected fp32, bf16, fp16
    """


class MissingError(InputError, FileNotFoundError):
    """Something named by the user that is not there; the message says what was looked for and where.

    Examples:
        >>> import pixcell
        >>> try:
        ...     pixcell.open_run("output/256").embed("tissues.png")
        ... except pixcell.MissingError as error:
        ...     print(error)
        no image tissues.png
    """

    __str__ = Exception.__str__  # OSError's own __str__ expects errno arguments
