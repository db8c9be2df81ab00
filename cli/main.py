"""The `diffctl` script: all commands, and the place where an error becomes one sentence.

Command modules declare options and their checks, so that `--help` is fast. The bodies of commands are in
cli/actions/ and cli/stages/, which load torch, MLflow or Prefect.
"""

import os
import signal
import sys
from pathlib import Path

import typer

from cli.commands import models, pipeline, registry, scores, servers, show
from cli.shared.command import CommandGroup, Options, add_command
from cli.shared.process import outcome_of, print_message, run_app, set_up_process
from diffusion.system.signals import StopRequest, interrupt_on_signal, make_interrupted
from flows import stage_outcome

app = typer.Typer(
    cls=CommandGroup,
    help="Train, sweep, evaluate and ship diffusion models; every number can be reproduced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PANELS: dict[str, tuple[type[Options] | typer.Typer, ...]] = {
    "Pipeline": pipeline.COMMANDS,
    "Models": (*models.COMMANDS, show.app),
    "Scores": scores.COMMANDS,
    "Servers": servers.COMMANDS,
    "Registry": registry.COMMANDS,
}
for panel, commands in PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            add_command(app, command, rich_help_panel=panel)
add_command(app, models.SearchTrial, "search-trial", hidden=True)


def main() -> None:
    """Run a command; an error of ours becomes one line on stderr and an exit code.

    A supervising process receives the outcome in the file that it names by an environment variable.
    """
    set_up_process()
    path = os.environ.pop(stage_outcome.VARIABLE, None)  # child processes do not inherit it
    code, stop = 0, StopRequest()
    try:
        with interrupt_on_signal() as stop:
            code = run_app(app, stop)
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
