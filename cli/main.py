"""The `diffctl` script: every command in one place, and the one place where an error becomes a sentence.

Only the standard library and typer are imported here and at the top of the command modules: torch, mlflow
and prefect load inside the commands that need them, so that help is instant.
"""

import atexit
import errno
import gc
import os
import sys
import warnings
from pathlib import Path

import typer

from cli.commands import check, compare, evaluate, images, interop, nll, profiles, prune, run, runs, sample
from cli.stages import bodies, classifier
from diffusion.system.errors import DiffctlError, DiffctlWarning, reason
from flows import outcome

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)

app = typer.Typer(
    help="Train, sweep, evaluate and ship diffusion models; every number can be made again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command()(run.ui)
app.command()(profiles.use)
app.command()(check.check)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(nll.nll)
app.command()(images.encode)
app.command()(images.interpolate)
bodies.app.command()(classifier.classifier)
app.add_typer(bodies.app, name="stage")
app.add_typer(interop.import_app, name="import")
app.add_typer(interop.export_app, name="export")
app.add_typer(runs.app, name="runs")
app.command()(compare.compare)
app.command()(runs.sync)
app.command()(runs.promote)
app.command()(prune.prune)


def main() -> None:
    """Run a command; an error of ours is one line on stderr and its exit code, told to a supervisor, too."""
    warnings.showwarning = _show_warning
    _collect_less()
    place = os.environ.pop(outcome.VARIABLE, None)  # not for the processes that this one starts
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe (head, less) went away: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        end = _outcome(error)
        if place is not None:
            end.write(Path(place))
        if end.kind == "crashed":
            raise
        print(f"diffctl: {end.sentence}", file=sys.stderr)
        sys.exit(end.exit_code)


def _outcome(error: Exception) -> outcome.Outcome:
    """What a command that raised this comes to: its kind, its sentence and its exit code."""
    sentence, code = reason(error), 1
    if isinstance(error, DiffctlError):
        sentence, code = str(error), error.exit_code
    elif isinstance(error, OSError) and error.errno in FULL:
        sentence = f"{error.filename or 'a file'} cannot be written ({error.strerror}): make room"
    elif isinstance(error, OSError) and error.errno in CLOSED:
        how = f"cannot be used ({error.strerror}): give access, or name another place"
        sentence = f"{error.filename or 'a file'} {how}"
    else:
        return outcome.Outcome("crashed", sentence, code)
    return outcome.Outcome(outcome.kind_of(error), sentence, code)


def _collect_less() -> None:
    """Look for garbage more seldom, and not once more at the end, when all of it goes with the process.

    torch and MLflow make two million objects that stay. Looking through these again and again while they are
    imported, and at the end, takes up to 1.5 s a command.
    """
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Our own warnings as a sentence on stderr; what libraries warn their callers of is no user's matter."""
    if issubclass(category, DiffctlWarning):
        print(f"diffctl: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
