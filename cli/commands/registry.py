"""`diffctl promote`, `rollback` and `history`: the champion in MLflow's model registry."""

from typing import Annotated

import typer

from cli.shared.options import AsJson
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COUNT

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, stored in the history.")]


def promote(
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="[VERSION]",
            min=1,
            max=MAX_COUNT,
            help="A registered version. [default: models/]",
        ),
    ] = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if the gate refuses; needs --reason.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the decision of the gate without any change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model version the champion if it is better.

    Without VERSION, the model of this project is registered with its scores first.

    Exit code 3 if the gate refuses it.
    """
    if force and not reason.strip():
        raise UsageError("--force needs --reason TEXT, which the history stores")
    begin("reading the registry", as_json)
    from cli.actions import champion

    champion.promote_model(version, reason, force, dry_run, as_json)


def rollback(
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            metavar="N",
            min=1,
            max=MAX_COUNT,
            help="An earlier version. [default: previous champion]",
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again.

    Its file is verified and one image is sampled first.

    The replaced version is not promoted by later runs.
    """
    begin("reading the registry", as_json)
    from cli.actions import champion_rollback

    champion_rollback.roll_back_champion(to, reason, as_json)


def history(as_json: AsJson = False) -> None:
    """List the changes of the champion, newest last."""
    begin("reading the registry", as_json)
    from cli.actions import champion

    champion.show_champions(as_json)
