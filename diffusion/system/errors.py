"""The ways a user's command can fail. The command line prints the sentence and exits with the code."""


class DiffctlError(Exception):
    """The work failed. The message is one sentence for the user: what is wrong, where, and what to do."""

    exit_code = 1


class DiffctlWarning(UserWarning):
    """Something is not as it should be, and the work goes on. One sentence: what, where, what was done."""


class UsageError(DiffctlError):
    """The request or the configuration is wrong; trying again without a change fails again."""

    exit_code = 2


class TemporaryError(DiffctlError):
    """The work failed for a reason that may pass, such as a server that does not answer: try again later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Interrupted(DiffctlError):
    """A signal ended the work after its state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def reason(error: BaseException) -> str:
    """Why something failed, in one line: our own errors as their sentence, others after their type."""
    text = " ".join(str(error).split())
    if isinstance(error, DiffctlError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
