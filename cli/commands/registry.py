"""The registry and the tracked runs: `diffctl promote`, `rollback`, `history`, `runs`, `sync` and `prune`."""

import typer

from cli.shared.command import CommandGroup, argument, command, option
from cli.shared.options import JsonOptions
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COUNT

app = typer.Typer()
runs_app = typer.Typer(name="runs", cls=CommandGroup, help="List the trainings.", invoke_without_command=True)
app.add_typer(runs_app)


class MoveOptions(JsonOptions):
    """The reason of a change of the champion."""

    reason: str = option("The reason, stored in the history.", metavar="TEXT", default="")


@command(app, "cli.actions.registry.champion:promote_model", "reading the registry")
class Promote(MoveOptions):
    """Make a model version the champion if it is better. Exit code 3 if the gate refuses it.

    Without VERSION, the model of this project is registered with its scores first.
    """

    version: int | None = argument("A version. [default: models/]", min=1, max=MAX_COUNT)
    force: bool = option("Promote it even if the gate refuses; needs --reason.")
    dry_run: bool = option("Print the decision of the gate without any change.")

    def __post_init__(self) -> None:
        if self.force and not self.reason.strip():
            raise UsageError("--force needs --reason TEXT, which the history stores")


@command(app, "cli.actions.registry.champion_rollback:roll_back_champion", "reading the registry")
class Rollback(MoveOptions):
    """Make the previous champion the champion again. Its file is verified and one image sampled first.

    The replaced version is not promoted by later runs.
    """

    to: int | None = option("A version. [default: previous champion]", metavar="N", min=1, max=MAX_COUNT)


@command(app, "cli.actions.registry.champion:show_champions", "reading the registry")
class History(JsonOptions):
    """List the changes of the champion, newest last."""


@command(runs_app, "cli.actions.registry.tracked_runs:show_runs", "reading the runs", name="")
class Runs(JsonOptions):
    """List the trainings of this project and its MLflow, newest first."""

    num: int = option("Show the newest N.", "--num", "-n", min=1, max=1000, default=50)
    every: bool = option("Show all.", "--all")


@command(runs_app, "cli.actions.registry.tracked_runs:reap_dead_runs", "looking for dead trainings")
class Reap(JsonOptions):
    """Mark trainings without a process as KILLED in MLflow. Their logs are delivered first.

    Without names, Prefect runs that stay Pending are also marked as Crashed, since they block their
    deployment.
    """

    names: list[str] | None = argument("Runs to mark. [default: dead runs here]", metavar="RUN")
    pending: int = option("Minutes until a pending run counts as crashed.", min=0, max=10_000, default=20)


@command(app, "cli.actions.registry.tracked_runs:sync_runs", "looking for undelivered logs")
class Sync(JsonOptions):
    """Deliver logs that MLflow missed during an outage, each point once."""


@command(app, "cli.actions.project.project_checks:prune_runs", "looking through runs/")
class Prune(JsonOptions):
    """List or remove files in runs/ that nothing needs.

    Files of params.yaml, the champion, searches and kept runs stay.
    """

    keep: list[str] | None = option("Keep the files of this run.", metavar="RUN")
    yes: bool = option("Remove the files; else they are only listed.")
