"""`diffctl search`: trainings over the section `search` of params.yaml, one by one or in parallel."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError


class RayOptions(NamedTuple):
    """The options that need --ray."""

    address: str | None
    max_parallel: int | None
    cpus: int | None


def search(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]",
            help="With --ray: the cluster. [default: sample.address, RAY_ADDRESS, or a local Ray]",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="The name of the search, stored in runs/search/NAME.")
    ] = "search",
    ray: Annotated[
        bool, typer.Option("--ray", help="Run trials in parallel on Ray, one per device.")
    ] = False,
    max_parallel: Annotated[
        int | None,
        typer.Option(
            "--max-parallel",
            min=1,
            max=4096,
            help="With --ray: trials at a time. [default: all that fit]",
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", min=1, max=4096, help="With --ray: cores per trial. [default: 1]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search hyperparameters: train and score every point of `search` in params.yaml.

    The models, samples and metrics of the project do not change. The same command resumes an interrupted
    search.
    """
    options = RayOptions(address, max_parallel, cpus)
    if not ray and any(options):
        raise UsageError("ADDRESS, --max-parallel and --cpus need --ray: add it, or leave them out")
    _require_optuna()
    begin("checking the points of the search", as_json)
    from cli.actions import trial_search

    trial_search.search_settings(name, ray, as_json, options)


def trial(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    local: Annotated[
        bool, typer.Option("--local", help="Sample in this process, whatever sample.runner is.")
    ] = False,
) -> None:
    """Run one trial; `diffctl search` starts these processes."""
    from cli.stages.trial import run_trial

    run_trial(folder, local=local)


def _require_optuna() -> None:
    if find_spec("optuna") is None:
        raise UsageError("a search needs Optuna: pip install 'diffctl[search]'")
