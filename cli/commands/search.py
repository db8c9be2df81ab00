"""`diffctl search`: trainings over the section `search` of params.yaml, in turn or side by side."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError


class RayOptions(NamedTuple):
    """What goes with --ray."""

    address: str | None
    at_once: int | None
    cpus: int | None


def search(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]",
            help="With --ray: of a cluster. [default: sample.address, RAY_ADDRESS, or a Ray of its own]",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="The search's name: its folder is runs/search/NAME.")
    ] = "search",
    ray: Annotated[
        bool, typer.Option("--ray", help="Trials side by side on Ray, a device each, on one machine or many.")
    ] = False,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once", min=1, max=4096, help="With --ray: so many trials at most. [default: all that fit]"
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, max=4096, help="With --ray: cores a trial. [default: 1]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Train, sample and score at every point of the section `search` of params.yaml, and compare them.

    The project's models, samples and metrics stay as they are. The same command goes on with a search that
    was stopped or killed.
    """
    asked = RayOptions(address, at_once, cpus)
    if not ray and any(asked):
        raise UsageError("an address, --at-once and --cpus go with --ray")
    _need_optuna()
    begin("looking for what no trial could be", as_json)
    from cli.actions import trial_search

    trial_search.run_search(name, ray, as_json, asked)


def trial(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    local: Annotated[
        bool, typer.Option("--local", help="Make the images in this process, whatever sample.runner says.")
    ] = False,
) -> None:
    """Run one trial of a search, which `diffctl search` does by itself."""
    from cli.stages.trial import run_trial

    run_trial(folder, local=local)


def _need_optuna() -> None:
    if find_spec("optuna") is None:
        raise UsageError("a search keeps its trials by Optuna, which is missing: `pip install optuna`")
