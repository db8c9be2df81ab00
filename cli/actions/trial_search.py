"""A hyperparameter search: its trials one by one or in parallel on Ray, and its table."""

import json
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import typer

from cli.actions.trial_runs import Trials
from cli.commands.search import RayOptions
from cli.shared.tables import show, table
from cli.stages.trial import MODULE
from diffusion.check import preflight
from diffusion.config import Config, load, parse
from diffusion.evaluate.features.extractors import configured_extractors
from diffusion.evaluate.features.reference_features import open_references
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED, REFERENCE
from diffusion.protocol.scores_document import read_scores
from diffusion.search.driver import Runner, search_beside
from diffusion.search.driver import search as run_all
from diffusion.search.folder import LOCK, SCORES, About, first_settings, folder_of, open_search, trial_folder
from diffusion.search.ledger import Ledger
from diffusion.search.space import count_trials, refuse_impossible, spoken
from diffusion.search.table import Group, Scored, best_trial, settings
from diffusion.search.trial import Trial
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.params import read_params
from diffusion.train.plan import plan_training
from flows.fetch_pretrained import fetch_pretrained
from flows.ray.trial_runner import TrialResources, ray_trials
from tracking.runs.logged_search import log_search


def run_search(name: str, ray: bool, as_json: bool, asked: RayOptions) -> None:
    """Carry out `diffctl search`."""
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


def _searchable() -> Config:
    config = load()
    if config.search is None:
        raise UsageError(f"{PARAMS} has no section `search`: docs/search.md shows one")
    return config


def _refused_early(values: dict[str, Any], config: Config) -> tuple[dict[str, Any], str]:
    """The settings that all trials share, and the data's digest; UsageError for what no trial could be.

    Each point is read as params.yaml and held against the prepared data, and what scores is looked for.
    """
    assert config.search is not None, "it is searchable"

    def possible(changed: dict[str, Any], origin: str) -> object:
        return parse(changed, origin)

    refuse_impossible(values, config.search, possible)
    fetch_pretrained(config.train.init_from)
    preflight(config, "train")
    meta = open_store(PREPARED / "train", PreparedMeta).meta

    def fitting(changed: dict[str, Any], origin: str) -> object:
        return plan_training(parse(changed, origin), meta, torch.device("cpu"))

    refuse_impossible(values, config.search, fitting)
    open_references(REFERENCE, configured_extractors(config.evaluate), config.evaluate.reference, PREPARED)
    first = parse(first_settings(values, config.search), "search")
    return first.model_dump(mode="json"), str(meta["digest"])


def _on_ray(
    asked: RayOptions, config: Config, folder: Path, trials: Trials
) -> AbstractContextManager[Runner]:
    """What makes trials beside each other; UsageError where `train.devices` is not the same for all."""
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


def _tell(folder: Path, about: About, config: Config, trials: list[Trial], as_json: bool) -> None:
    """The table, on the terminal and in MLflow, and how to have the best."""
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


def _as_json(folder: Path, trials: list[Trial], groups: list[Group], best: Path) -> dict[str, Any]:
    told = ("number", "point", "state", "value", "reason")
    listed = [{name: getattr(one, name) for name in told} for one in trials]
    return {
        "folder": str(folder),
        "best": {"point": groups[0].point, "params": str(best)},
        "settings": [group.as_json() for group in groups],
        "trials": listed,
    }


def _show(trials: list[Trial], groups: list[Group], scored: list[Scored]) -> None:
    """The settings by score, and below them the trials that have none."""
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


def _log(about: About, name: str, data: str, told: dict[str, Any], best: Group) -> None:
    """The table into the search's run; a warning where MLflow does not answer, for all else is delivered."""
    try:
        log_search(about.key, name, data, told, {f"best/{best.metric}": best.value})
    except DiffctlError as error:
        warnings.warn(
            f"the table is not in MLflow ({error}): the same command logs it, and trains nothing again",
            DiffctlWarning,
            stacklevel=2,
        )
