"""The `diffctl` script: every command in one place, and the one place where an error becomes a sentence.

Only the standard library and typer are imported here and at the top of the command modules: torch, mlflow
and prefect load inside the commands that need them, so that help is instant.
"""

import atexit
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TextIO

import typer

from cli.commands import (
    check,
    compare,
    deploy,
    ema,
    emit,
    evaluate,
    images,
    interop,
    nll,
    playground,
    profiles,
    prune,
    registry,
    run,
    runs,
    sample,
    schema,
    search,
    seeds,
    serve,
    servers,
    show,
    sweep,
)
from cli.shared.disk_errors import sentence_of
from cli.shared.flags import refuse_long
from cli.stages import belonging, bodies, classifier
from diffusion.system.errors import FAILED, DiffctlError, DiffctlWarning, Interrupted, reason
from diffusion.system.signals import StopRequest, interrupt_on_signal, make_interrupted
from flows import stage_outcome

app = typer.Typer(
    help="Train, sweep, evaluate and ship diffusion models; every number can be reproduced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.run)
app.command()(servers.ui)
app.command()(servers.up)
app.command()(servers.down)
app.command()(servers.status)
app.command()(deploy.deploy)
app.command()(profiles.use)
app.command()(check.check)
app.command()(schema.schema)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(sweep.sweep)
app.command()(search.search)
app.command("search-trial", hidden=True)(search.trial)
app.command()(nll.nll)
app.command()(ema.ema)
app.command()(images.encode)
app.command()(images.interpolate)
bodies.app.callback()(belonging.stage)
bodies.app.command()(classifier.classifier)
app.add_typer(bodies.app, name="stage")
app.add_typer(interop.import_app, name="import")
app.add_typer(interop.export_app, name="export")
app.add_typer(runs.app, name="runs")
app.add_typer(emit.app, name="emit")
app.command()(compare.compare)
app.command()(seeds.seeds)
app.add_typer(show.app, name="show")
app.command()(runs.sync)
app.command()(registry.promote)
app.command()(registry.rollback)
app.command()(registry.history)
app.command()(serve.serve)
app.command()(playground.playground)
app.command()(prune.prune)


def main() -> None:
    """Run a command; an error of ours is one line on stderr and its exit code, told to a supervisor, too."""
    _quieten_libraries()
    _show_any_name()
    _collect_less()
    place = os.environ.pop(stage_outcome.VARIABLE, None)  # not for the processes that this one starts
    code, stop = 0, StopRequest()
    try:
        with interrupt_on_signal() as stop:
            refuse_long(sys.argv[1:])
            code = _run(stop)
    except BaseException as error:
        end = _outcome(error)
        if end.kind == "crashed" and stop.signal is not None:  # what a library has made of the signal
            end = _outcome(make_interrupted(stop.signal))
        if place is not None:
            end.write(Path(place))
        if end.kind == "crashed":
            raise
        _say(end.sentence)
        code = end.exit_code
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the work is over: what is left to end makes no traceback
    sys.exit(code)


def _run(stop: StopRequest) -> int:
    """Run the command that is asked for and return its exit code; raises what it failed of."""
    code = 0
    try:
        app()
    except BrokenPipeError:
        _to_nobody(sys.stdout)
    except SystemExit as end:  # typer has ways of its own to end for these two
        code = end.code if isinstance(end.code, int) else 0
        if isinstance(stopped := _cause(end, Interrupted), Interrupted):
            raise stopped from None
        if _cause(end, BrokenPipeError):
            _to_nobody(sys.stdout)
            return 0
        if stop.signal is not None and code == 128 + stop.signal:
            stop.clear()  # it was told already
    _flush()
    return code


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The error of this kind that an exception comes from; None where there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return cause


def _flush() -> None:
    """Write out what was printed; nobody needs to read it. OSError where it cannot be written."""
    if sys.stdout is None:  # closed by whoever started this process
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nobody(sys.stdout)
    except OSError:
        _to_nobody(sys.stdout)  # else the interpreter tries again at its end, and complains
        raise


def _to_nobody(stream: TextIO) -> None:
    """The reader of a pipe (head, less) went away, which is no error: the rest goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"diffctl: {sentence}", file=sys.stderr, flush=True)


def _outcome(error: BaseException) -> stage_outcome.StageOutcome:
    """What a command that raised this comes to: its kind, its sentence and its exit code."""
    sentence, code = reason(error), FAILED
    if isinstance(error, DiffctlError | Interrupted):
        sentence, code = str(error), error.exit_code
    elif isinstance(error, OSError) and (told := sentence_of(error)):
        sentence = told
    else:
        return stage_outcome.StageOutcome("crashed", sentence, code)
    return stage_outcome.StageOutcome(stage_outcome.kind_of(error), sentence, code)


def _quieten_libraries() -> None:
    """Let nothing be seen of what libraries warn their callers of, nor of a stop that one of them caught."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect says at a terminal that it tracks, if it does
    if isinstance(logging.lastResort, logging.Handler):
        logging.lastResort.setLevel(logging.ERROR)  # of logs that nobody asked for
    sys.unraisablehook = _show_unraisable


def _show_any_name() -> None:
    """Print what standard output has no letters for, such as a file's name that is no text, as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _collect_less() -> None:
    """Look for garbage more seldom, and not once more at the end, when all of it goes with the process.

    torch and MLflow make two million objects that stay. Looking through these again and again while they are
    imported, and at the end, takes up to 2 s a command.
    """
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    atexit.register(_leave_garbage)  # what is registered first runs last


def _leave_garbage() -> None:
    """Let the interpreter end without a last collection, and in silence.

    C++ libraries that count what of theirs is left (triton's CUDA build by nanobind) would complain of it in
    thirty lines. By now all others have been heard: threads and children were waited for, and every other
    function that is called at exit has run. To end here (`os._exit`) would be as quiet, but skip the
    destructors by which files and databases are closed.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # which the interpreter tells by itself
    gc.freeze()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Our own warnings as a sentence on stderr; what libraries warn their callers of is no user's matter."""
    if issubclass(category, DiffctlWarning):
        print(f"diffctl: {message}", file=sys.stderr)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs", /) -> None:
    """As usual, but for a signal that came in the midst of a callback: its flag is set, and is looked at."""
    if not issubclass(unraisable.exc_type, Interrupted):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()
