"""The process of a command: warnings, closed pipes, errors as sentences and exit codes."""

import atexit
import contextlib
import gc
import io
import logging
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path

import typer

from diffusion.layout import FORCED
from diffusion.system.errors import DiffctlError, DiffctlWarning, Interrupted, is_disk_full, printable, reason
from diffusion.system.registry import find_plugin_line, plugin_error
from diffusion.system.signals import StopRequest, make_interrupted
from flows.stage_outcome import StageOutcome


def set_up_process() -> None:
    """Hide warnings that libraries address to developers, escape unprintable names, collect garbage less."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("DO_NOT_TRACK", "1")  # else Prefect prints a line on telemetry
    if isinstance(logging.lastResort, logging.Handler):
        logging.lastResort.setLevel(logging.ERROR)
    sys.unraisablehook = _show_unraisable
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by the parent process: a file would get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # torch and MLflow create two million permanent objects: scanning them takes up to 2 s a command.
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    atexit.register(_end_quietly)  # the first registered function runs last


def command_line() -> str:
    """Return the command as it was typed in a shell."""
    return shlex.join(["diffctl", *sys.argv[1:]])


def _end_quietly() -> None:
    """Skip the last garbage collection, and hide what C++ libraries print while the process ends.

    triton's CUDA build (nanobind) reports leaks in thirty lines. All other exit functions have run by now.
    `os._exit` would skip the destructors that close files and databases.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # the interpreter reports it
    gc.freeze()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print our own warnings as a sentence, and no others."""
    if issubclass(category, DiffctlWarning):
        print(f"diffctl: {message}", file=sys.stderr)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs", /) -> None:
    """Ignore a signal that arrived inside a callback: its flag is set and will be checked."""
    if not issubclass(unraisable.exc_type, Interrupted):
        sys.__unraisablehook__(unraisable)


def run_app(app: typer.Typer, stop: StopRequest, started_in: Path | None = None) -> int:
    """Run the command of the command line and return its exit code; a closed pipe is no error.

    `started_in` is the folder that its paths are relative to; None for the working directory.
    """
    code = 0
    try:
        app(obj=started_in)
    except BrokenPipeError:
        _discard()
    except SystemExit as end:  # typer ends by itself on these two
        if line := find_plugin_line(end):
            raise plugin_error(end, line) from None
        code = end.code if isinstance(end.code, int) else 0
        if isinstance(stopped := _cause(end, Interrupted), Interrupted):
            raise stopped from None
        if _cause(end, BrokenPipeError):
            _discard()
            return 0
        if stop.signal is not None and code == 128 + stop.signal:
            stop.clear()  # it is reported already
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard()  # else the interpreter tries again at its end
        if not isinstance(error, BrokenPipeError):
            raise
    return code


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return the exception of this kind in the chain of causes, or None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return cause


def _discard() -> None:
    """Redirect stdout to nowhere: the reader of the pipe (head, less) has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_message(sentence: str) -> None:
    """Print a sentence of this program on stderr, if that is still open."""
    with contextlib.suppress(OSError):
        print(f"diffctl: {sentence}", file=sys.stderr, flush=True)


def outcome_of(error: BaseException) -> StageOutcome:
    """Return the kind, the sentence and the exit code of a command that raised the error."""
    if isinstance(error, DiffctlError | Interrupted):
        sentence = str(error)
        discarded = FORCED.exists() if sys.argv[1:2] == ["run"] else ", saved" in sentence
        if "--fresh" in sys.argv and discarded:  # the same command would discard again
            resume = command_line().replace(" --fresh", "")
            sentence = sentence.replace("the same command", f"`{resume}`")
        return StageOutcome(error.kind, sentence, error.exit_code)
    if isinstance(error, KeyboardInterrupt):  # raised by code that does not use our handlers
        return outcome_of(make_interrupted(signal.SIGINT))
    if isinstance(error, OSError) and not isinstance(error, ValueError):  # io.UnsupportedOperation is both
        return StageOutcome("failed", _describe(error), DiffctlError.exit_code)
    return StageOutcome("crashed", reason(error), DiffctlError.exit_code)


def _describe(error: OSError) -> str:
    """Return a sentence on a failed file operation."""
    if error.errno is None:
        return reason(error)
    name = "a file" if error.filename is None else printable(os.fsdecode(error.filename))
    if is_disk_full(error):
        return f"{name} cannot be written ({error.strerror}): free some space"
    return f"{name} cannot be used ({error.strerror}): check it, or use another path"
