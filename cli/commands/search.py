"""`diffctl search`: trainings over the section `search` of params.yaml, in turn or side by side."""

import json
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.shared.first_word import begin
from cli.shared.tables import show, table
from cli.shared.trials import Trials

if TYPE_CHECKING:
    from diffusion.config import Config
    from diffusion.search.driver import Runner
    from diffusion.search.folder import About
    from diffusion.search.table import Group, Scored
    from diffusion.search.trial import Trial


class _Asked(NamedTuple):
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
    from diffusion.system.errors import UsageError

    asked = _Asked(address, at_once, cpus)
    if not ray and any(asked):
        raise UsageError("an address, --at-once and --cpus go with --ray")
    _need_optuna()
    begin("looking for what no trial could be", as_json)
    from diffusion.search.driver import search as run_all
    from diffusion.search.driver import search_beside
    from diffusion.search.folder import LOCK, folder_of, open_search
    from diffusion.search.ledger import Ledger
    from diffusion.search.space import count_trials
    from diffusion.system.locks import file_lock
    from diffusion.system.params import read_params

    folder, values, config = folder_of(name), read_params(), _searchable()
    assert config.search is not None, "it is searchable"
    settings, digest = _refused_early(values, config)
    busy = f"the search {name} is running already: wait for it, or give this one another --name"
    with file_lock(folder / LOCK, timeout=0, busy=busy):
        about = open_search(folder, config.search, settings, digest)
        ledger = Ledger(folder, name, config.search)
        trials = Trials(folder, values, count_trials(config.search))
        if ray:
            with _on_ray(asked, config, folder, trials) as runner:
                made = search_beside(ledger, config.search, runner)
        else:
            made = run_all(ledger, config.search, trials.make)
        _tell(folder, about, config, made, as_json)


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
    from importlib.util import find_spec

    from diffusion.system.errors import UsageError

    if find_spec("optuna") is None:
        raise UsageError("a search keeps its trials by Optuna, which is missing: `pip install optuna`")


def _searchable() -> "Config":
    from diffusion.config import load
    from diffusion.layout import PARAMS
    from diffusion.system.errors import UsageError

    config = load()
    if config.search is None:
        raise UsageError(f"{PARAMS} has no section `search`: docs/search.md shows one")
    return config


def _refused_early(values: dict[str, Any], config: "Config") -> tuple[dict[str, Any], str]:
    """The settings that all trials share, and the data's digest; UsageError for what no trial could be.

    Each point is read as params.yaml and held against the prepared data, and what scores is looked for.
    """
    import torch

    from diffusion.check import preflight
    from diffusion.config import parse
    from diffusion.evaluate.features.extractors import configured_extractors
    from diffusion.evaluate.features.reference_features import open_references
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import PreparedMeta
    from diffusion.layout import PREPARED, REFERENCE
    from diffusion.search.folder import first_settings
    from diffusion.search.space import refuse_impossible
    from diffusion.train.plan import plan_training
    from flows.fetch_pretrained import fetch_pretrained

    assert config.search is not None, "it is searchable"

    def possible(changed: dict[str, Any], origin: str) -> object:
        return parse(changed, origin)

    refuse_impossible(values, config.search, possible)
    fetch_pretrained(config.train.start)
    preflight(config, "train")
    meta = open_store(PREPARED / "train", PreparedMeta).meta

    def fitting(changed: dict[str, Any], origin: str) -> object:
        return plan_training(parse(changed, origin), meta, torch.device("cpu"))

    refuse_impossible(values, config.search, fitting)
    open_references(REFERENCE, configured_extractors(config.evaluate), config.evaluate.reference, PREPARED)
    first = parse(first_settings(values, config.search), "search")
    return first.model_dump(mode="json"), str(meta["digest"])


def _on_ray(
    asked: "_Asked", config: "Config", folder: Path, trials: Trials
) -> "AbstractContextManager[Runner]":
    """What makes trials beside each other; UsageError where `train.devices` is not the same for all."""
    from cli.stages.trial import MODULE
    from diffusion.system.errors import UsageError
    from flows.ray.trial_runner import TrialResources, ray_trials

    assert config.search is not None, "it is searchable"
    if "train.devices" in config.search.fields:
        raise UsageError("search.fields.train.devices: with --ray all trials have the same: leave it out")
    devices = config.train.devices if isinstance(config.train.devices, int) else 1
    return ray_trials(
        asked.address or config.sample.address,
        TrialResources(asked.at_once, asked.cpus or 1, devices),
        folder,
        (*MODULE, "--local"),
        trials.begin,
        trials.end_beside,
    )


def _tell(folder: Path, about: "About", config: "Config", trials: "list[Trial]", as_json: bool) -> None:
    """The table, on the terminal and in MLflow, and how to have the best."""
    from diffusion.layout import PARAMS
    from diffusion.protocol.scores import read_scores
    from diffusion.search.folder import SCORES, trial_folder
    from diffusion.search.table import Scored, best_trial, settings
    from diffusion.system.errors import DiffctlError

    done = [one for one in trials if one.state == "done"]
    scored = [Scored(one, read_scores(trial_folder(folder, one.number) / SCORES)) for one in done]
    if not scored:
        raise DiffctlError(
            f"none of the {len(trials)} trials came to a score: {folder}/trials has their reasons"
        )
    groups = settings(scored)
    best = trial_folder(folder, best_trial(groups[0], scored).number) / PARAMS.name
    told = _as_json(folder, trials, groups, best)
    _log(about, folder.name, config.data.name, told, groups[0])
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        _show(trials, groups, scored)
        typer.echo(
            f"\nbest: `diffctl use {best}` makes it params.yaml; its scores and model lie beside that file"
        )


def _as_json(folder: Path, trials: "list[Trial]", groups: "list[Group]", best: Path) -> dict[str, Any]:
    told = ("number", "point", "state", "value", "reason")
    listed = [{name: getattr(one, name) for name in told} for one in trials]
    return {
        "folder": str(folder),
        "best": {"point": groups[0].point, "params": str(best)},
        "settings": [group.as_json() for group in groups],
        "trials": listed,
    }


def _show(trials: "list[Trial]", groups: "list[Group]", scored: "list[Scored]") -> None:
    """The settings by score, and below them the trials that have none."""
    from diffusion.search.space import spoken

    names = list(groups[0].point)
    listed = table(*names, "TRIALS", "CELL", groups[0].metric, "95%", "")
    for place, group in enumerate(groups):
        between = "" if group.interval is None else f"{group.interval.low:.4g} to {group.interval.high:.4g}"
        mark = "<" if place == 0 else "≈" if group.tied else ""
        values = [spoken({name: group.point[name]}).removeprefix(f"{name} ") for name in names]
        listed.add_row(
            *values, ", ".join(map(str, group.trials)), group.cell, f"{group.value:.5g}", between, mark
        )
    show(listed)
    typer.echo("< the best; of several seeds the mean, with the interval of that mean")
    if any(group.tied for group in groups):
        typer.echo("≈ not told apart from the best: the gap is inside its confidence interval")
    for one in trials:
        if one.state in ("pruned", "failed"):
            why = f": {one.reason}" if one.reason else f" after step {max(one.reports, default=0):,}"
            typer.echo(f"trial {one.number} {one.state}{why} ({spoken(one.point)})")


def _log(about: "About", name: str, data: str, told: dict[str, Any], best: "Group") -> None:
    """The table into the search's run; a warning where MLflow does not answer, for all else is delivered."""
    from diffusion.system.errors import DiffctlError, DiffctlWarning
    from tracking.runs.logged_search import log_search

    try:
        log_search(about.key, name, data, told, {f"best/{best.metric}": best.value})
    except DiffctlError as error:
        warnings.warn(
            f"the table is not in MLflow ({error}): the same command logs it, and trains nothing again",
            DiffctlWarning,
            stacklevel=2,
        )
