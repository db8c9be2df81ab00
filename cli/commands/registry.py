"""Commands over the registry: which model is champion, who decided it, and back to the one before."""

from typing import Annotated

import typer

from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_COUNT

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]


def promote(
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="[VERSION]", min=1, max=MAX_COUNT, help="A registered version. [default: models/]"
        ),
    ] = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it whatever the gate says; needs --reason.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the gate would decide, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it is better; by default models/, registered with its scores first.

    Exit code 3 when the gate keeps it out.
    """
    if force and not reason.strip():
        raise UsageError("--force needs --reason TEXT: the history says why the gate was overruled")
    begin("reading the registry", as_json)
    from cli.actions import champion

    champion.promote_model(version, reason, force, dry_run, as_json)


def rollback(
    to: Annotated[
        int | None,
        typer.Option(
            "--to", metavar="N", min=1, max=MAX_COUNT, help="An earlier version. [default: the one before]"
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again, after checking its file and sampling one image.

    The version that it replaces is pinned: no `diffctl run` promotes it again.
    """
    begin("reading the registry", as_json)
    from cli.actions import champion_rollback

    champion_rollback.roll_back_champion(to, reason, as_json)


def history(as_json: AsJson = False) -> None:
    """List the champions, the newest last: when, by whom, from which version to which, and why."""
    begin("reading the registry", as_json)
    from cli.actions import champion

    champion.show_champions(as_json)
