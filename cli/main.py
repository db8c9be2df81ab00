"""The `diffctl` script: all commands, and the place where an error becomes one sentence.

Command modules declare options and their checks, so that `--help` is fast. The bodies of commands are in
cli/actions/ and cli/stages/, which load torch, MLflow or Prefect.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.commands import pipeline, project, registry, scores, servers
from cli.images import image_commands
from cli.models import model_commands
from cli.shared.command import CommandGroup
from cli.shared.process import outcome_of, print_message, run_app, set_up_process
from cli.trials import trial_commands
from diffusion.system.signals import StopRequest, interrupt_on_signal, make_interrupted
from diffusion.version import VERSION
from flows import stage_outcome

app = typer.Typer(
    cls=CommandGroup,
    help="Train, sweep, evaluate and ship diffusion models; every number can be reproduced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PANELS = (
    ("Pipeline", pipeline.app),
    ("Project", project.app),
    ("Models", image_commands.app),
    ("Models", model_commands.app),
    ("Models", trial_commands.search_app),
    ("Scores", scores.app),
    ("Scores", model_commands.score_app),
    ("Scores", trial_commands.verdict_app),
    ("Servers", servers.app),
    ("Registry", registry.app),
)
for panel, commands in PANELS:
    for one in (*commands.registered_commands, *commands.registered_groups):
        one.rich_help_panel = panel  # type: ignore[attr-defined]  # both have it
    app.add_typer(commands)


def print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"diffctl {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")
    ] = False,
) -> None:
    """Take options before the command."""


def main(started_in: Path | None = None) -> None:
    """Run a command; an error of ours becomes one line on stderr and an exit code.

    Paths of the command line are relative to the folder `started_in`, by default the working directory.
    A supervising process receives the outcome in the file that it names by an environment variable.
    """
    set_up_process()
    path = os.environ.pop(stage_outcome.VARIABLE, None)  # child processes do not inherit it
    code, stop = 0, StopRequest()
    try:
        with interrupt_on_signal() as stop:
            code = run_app(app, stop, started_in)
    except BaseException as error:
        outcome = outcome_of(error)
        if outcome.kind == "crashed" and stop.signal is not None:  # an error caused by the signal
            outcome = outcome_of(make_interrupted(stop.signal))
        if path is not None:
            outcome.write(Path(path))
        if outcome.kind == "crashed":
            raise
        print_message(outcome.sentence)
        code = outcome.exit_code
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the interpreter ends
    sys.exit(code)
