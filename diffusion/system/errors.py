"""Errors of user commands. The command line prints the sentence and exits with the code."""

import errno
from typing import Literal

# Exit codes, as in docs/operations.md; that of a signal is 128 and its number.
FAILED = 1
REFUSED = 2  # wrong use or configuration: the same again fails the same
KEPT_OUT = 3  # `promote` alone: the gate kept the model out
TEMPORARY = 75  # may pass, such as a server that does not answer (EX_TEMPFAIL of sysexits.h)


Kind = Literal["interrupted", "refused", "temporary", "failed", "crashed"]
"""Of a failure: a supervisor repeats no refused work."""


class DiffctlError(Exception):
    """The work failed. The message is one sentence: what is wrong, where, and what to do."""

    exit_code = FAILED
    kind: Kind = "failed"


class DiffctlWarning(UserWarning):
    """A problem that does not stop the work. One sentence: what, where, and what was done."""


class UsageError(DiffctlError):
    """The request or configuration is wrong; the same request fails again."""

    exit_code = REFUSED
    kind = "refused"


class LastingError(DiffctlError):
    """The work failed, and the same work would fail again."""

    kind = "refused"


class TemporaryError(DiffctlError):
    """The work failed for a reason that may pass, such as an unreachable server."""

    exit_code = TEMPORARY
    kind = "temporary"


class Interrupted(KeyboardInterrupt):
    """A signal ended the work. Being a KeyboardInterrupt, no library's `except Exception` catches it."""

    kind: Kind = "interrupted"

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error is a full disk or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: object) -> str:
    """Return the text, such as a file name, as one printable line with escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def reason(error: BaseException) -> str:
    """Return an error as one line: ours by their sentence, others with their type."""
    text = " ".join(str(error).split())
    if isinstance(error, DiffctlError | Interrupted):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type without one."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
