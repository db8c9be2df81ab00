"""The `diffctl` script: all commands, and the place where an error becomes one sentence.

Command modules declare options and their checks, so that `--help` is fast. The bodies of commands are in
cli/actions/ and cli/stages/, which load torch, MLflow or Prefect.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from cli.commands import models, pipeline, registry, scores, servers, show
from cli.shared.command import Options, add_command
from cli.shared.process import outcome_of, print_message, run_app, set_up_process
from diffusion.system.signals import StopRequest, interrupt_on_signal, make_interrupted
from flows import stage_outcome


class PanelGroup(TyperGroup):
    """A group whose help lists its commands by panel, without rich, which takes longer to import."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order of its first command."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = str(getattr(command, "rich_help_panel", "Commands"))
                panels.setdefault(panel, []).append((name, command.get_short_help_str(80)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=PanelGroup,
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
