"""The files in runs/ that nothing needs."""

from collections.abc import Sequence
from functools import partial

import typer

from cli.commands.registry import Prune
from cli.shared.tables import show, table
from diffusion.check.findings import Project
from diffusion.config import load
from diffusion.system.errors import UsageError
from diffusion.system.memory import format_bytes
from diffusion.train.plan import TrainPlan
from tracking.runs.leftovers import Leftover, find_leftovers, remove_leftovers


def prune_runs(options: Prune) -> None:
    """Carry out `diffctl prune`."""
    project = Project(load())
    if not project.is_ready or project.plan is None:
        raise UsageError(
            "the data of params.yaml are not prepared, so its training cannot be identified: "
            "`diffctl stage data` prepares them"
        )
    plans: list[TrainPlan] = [project.plan]
    if project.classifier_plan is not None:
        plans.append(project.classifier_plan)
    found = find_leftovers(project.config, plans, options.keep or [])
    busy = remove_leftovers(found) if options.yes else []
    rows = [{**vars(one), "removed": options.yes and one not in busy} for one in found]
    options.answer(rows, partial(_show, found, busy, options.yes))


def _show(found: Sequence[Leftover], busy: Sequence[Leftover], removed: bool) -> None:
    if not found:
        typer.echo("runs/ contains nothing to remove")
        return
    listed = table("SIZE", "WHAT", "FOLDER")
    for one in found:
        listed.add_row(format_bytes(one.size), one.what + " (in use: stays)" * (one in busy), str(one.path))
    show(listed)
    total = format_bytes(sum(one.size for one in found if one not in busy))
    typer.echo(f"{total} removed" if removed else f"{total} may go: `diffctl prune --yes` removes them")
