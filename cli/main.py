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

import typer

from cli import (
    classifier,
    compare,
    evaluate,
    images,
    interop,
    models,
    nll,
    profiles,
    project,
    prune,
    run,
    runs,
    stages,
)
from diffusion.errors import DiffctlError, DiffctlWarning

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
app.command()(project.check)
app.command()(models.sample)
app.command()(evaluate.evaluate)
app.command()(nll.nll)
app.command()(images.encode)
app.command()(images.interpolate)
stages.app.command()(classifier.classifier)
app.add_typer(stages.app, name="stage")
app.add_typer(interop.import_app, name="import")
app.add_typer(interop.export_app, name="export")
app.add_typer(runs.app, name="runs")
app.command()(compare.compare)
app.command()(runs.sync)
app.command()(runs.promote)
app.command()(prune.prune)


def main() -> None:
    """Run a command; a DiffctlError is one line on stderr and its exit code."""
    warnings.showwarning = _show_warning
    _collect_less()
    try:
        app()
    except DiffctlError as error:
        print(f"diffctl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe (head, less) went away: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno in FULL:
            failed = f"cannot be written ({error.strerror}): make room"
        elif error.errno in CLOSED:
            failed = f"cannot be used ({error.strerror}): give access, or name another place"
        else:
            raise
        print(f"diffctl: {error.filename or 'a file'} {failed}", file=sys.stderr)
        sys.exit(1)


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
