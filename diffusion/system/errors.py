"""The ways a user's command can fail. The command line prints the sentence and exits with the code."""

import errno

# Every exit code of `diffctl` and what it says; docs/operations.md has the same table.
DONE, FAILED, REFUSED, KEPT_OUT, TEMPORARY = 0, 1, 2, 3, 75  # the last: EX_TEMPFAIL of sysexits.h
EXIT_CODES = {
    DONE: "done, or nothing to do",
    FAILED: "the work failed",
    REFUSED: "wrong use or configuration: the same again fails the same",
    KEPT_OUT: "`promote` alone: the gate kept the model out",
    TEMPORARY: "a failure that may pass, such as a server that does not answer: try again later",
    129: "the terminal was closed",
    130: "Ctrl-C",
    143: "SIGTERM",
}


class DiffctlError(Exception):
    """The work failed. The message is one sentence for the user: what is wrong, where, and what to do."""

    exit_code = FAILED


class DiffctlWarning(UserWarning):
    """Something is not as it should be, and the work goes on. One sentence: what, where, what was done."""


class UsageError(DiffctlError):
    """The request or the configuration is wrong; trying again without a change fails again."""

    exit_code = REFUSED


class TemporaryError(DiffctlError):
    """The work failed for a reason that may pass, such as a server that does not answer: try again later."""

    exit_code = TEMPORARY


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, what is finished of it is kept. One sentence, as of a DiffctlError.

    It passes by whoever catches every Exception, as libraries do while they are imported.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk or a quota has no room left, which a person can make."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: object) -> str:
    """The text, such as a file's name, in one line that any terminal shows: all else as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def reason(error: BaseException) -> str:
    """Why something failed, in one line: our own errors as their sentence, others after their type."""
    text = " ".join(str(error).split())
    if isinstance(error, DiffctlError | Interrupted):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
