"""A hyperparameter search: its trials one by one or in parallel on Ray, and its table."""

import re
import uuid
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from cli.actions.scores.model_sweep import check_scoring
from cli.actions.trials.trial_process import trial_runner
from cli.shared.console import print_table
from cli.trials.trial_commands import Search
from diffusion.check import preflight
from diffusion.config import Config, load, parse
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import PARAMS, PREPARED, SEARCH_RUNS
from diffusion.protocol.grid import grid
from diffusion.protocol.scores_document import read_scores
from diffusion.search import search_config
from diffusion.search.search_config import SearchConfig, describe_point
from diffusion.search.setting_table import SettingRow, best_trial, setting_rows
from diffusion.search.study import SearchStudy, run_search
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.params import changed_fields, read_params, with_fields
from diffusion.system.section import brief
from diffusion.train.plan import DenoiserPlan, changed_loss, plan_training
from diffusion.train.pretrained import PretrainedRefused
from diffusion.trials import trial_runs
from diffusion.trials.trial_inputs import changed_inputs, inputs_of_scores
from diffusion.trials.trial_runs import About, Trial, TrialResult, trial_dir
from diffusion.verdict.arms import refuse_files_of_the_training
from flows.dvc_pull import fetch_networks
from tracking.experiments import log_search
from tracking.keys import title_of
from tracking.runs.base_models import fix_bases, fixed_base

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_FAILURES = 3  # in a row, which the settings alone do not explain


class Trials:
    """The `total` trials of the search in `folder`, by the `values` of params.yaml and the data's `meta`."""

    def __init__(self, folder: Path, values: dict[str, Any], meta: dict[str, Any], total: int) -> None:
        self._folder, self._values, self._meta, self._total = folder, values, meta, total
        self._failures = 0

    def begin(self, trial: Trial) -> TrialResult | None:
        """Write the params.yaml of the trial; return its result if it has one already or is invalid."""
        folder = trial_dir(self._folder, trial.number)
        self._print(trial.number, f": {describe_point(trial.point)}")
        if (result := trial_runs.read_result(folder)) is not None:
            return result
        path = trial_runs.write_trial_params(folder, self._values, trial.point)
        try:
            # A point within ranges may be an invalid configuration.
            plan_training(load(path), self._meta, torch.device("cpu"))
        except PretrainedRefused:
            raise  # its file has changed since the search began
        except UsageError as error:
            result = TrialResult("failed", reason=str(error))
            trial_runs.write_result(folder, result)
        return result

    def end(self, number: int, result: TrialResult) -> None:
        """Report the end of a trial; DiffctlError after several failures in a row."""
        value = "" if result.value is None else f": {result.value:.5g}"
        why = f" because {result.reason}" if result.reason else ""
        self._print(number, f" is {result.state}{value}{why}")
        self._failures = self._failures + 1 if result.state == "failed" else 0
        if self._failures >= MAX_FAILURES:
            folder = trial_dir(self._folder, number)
            raise DiffctlError(f"{MAX_FAILURES} trials in a row failed{why}: correct that, remove {folder}")

    def _print(self, number: int, text: str) -> None:
        typer.echo(f"trial {number} (of {self._total}){text}", err=True)


def search_settings(options: Search) -> None:
    folder, values, config = _folder(options.name), read_params(), load()
    if (section := config.search) is None:
        raise UsageError(f"{PARAMS} has no section `search`: add one, see `diffctl docs search`")
    if options.ray and "train.devices" in section.fields:
        raise UsageError("search.fields.train.devices: with --ray it is equal for all trials: leave it out")
    settings, plans = _check_search(values, config, section)
    busy = f"the search {options.name} is running: wait for it, or use another --name"
    with file_lock(folder / trial_runs.LOCK, timeout=0, busy=busy):
        known = trial_runs.find_about(folder)
        bases = fix_bases([config.sample.base]) if known is None else known.bases
        base, cells = fixed_base(config.sample.base, bases), grid(config.sample, config.sweep)
        about = About(
            key=uuid.uuid4().hex,
            settings=settings,
            search=section.model_dump(mode="json", exclude={"trials"}),
            bases=bases,
            inputs=[inputs_of_scores(config.sample, config.evaluate, plan, cells, base) for plan in plans],
        )
        if known is not None:
            _refuse_other(folder, known, about)
        about = trial_runs.open_about(folder, about)
        meta = open_store(PREPARED / "train", PreparedMeta).meta
        trials = Trials(folder, values, meta, search_config.count_trials(section))
        with trial_runner(options, config, folder, options.address) as runner:
            done = run_search(SearchStudy(folder, section), runner, trials.begin, trials.end)
        _report(options, folder, about, title_of(config.data.name), done)


def _folder(name: str) -> Path:
    """Return the folder of the search; UsageError for an invalid name."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {brief(name)}: give at most 100 letters, digits, -, _ and dots inside")
    return SEARCH_RUNS / name


def _refuse_other(folder: Path, known: About, now: About) -> None:
    """Raise UsageError if the search in the folder has other settings or inputs than `now`.

    Its settings have the first point of the search, so that the values of searched fields in params.yaml do
    not matter. The number of trials is no part of them: it may increase.
    """
    changed = changed_fields({"search": known.search}, {"search": now.search})  # they change settings too
    changed = changed or changed_fields(known.settings, now.settings)
    if changed := changed or changed_inputs(known.inputs, now.inputs):
        fields = ", ".join(changed[:3])
        raise UsageError(f"{folder} is a search with other settings ({fields}): use another --name")


def _check_search(
    values: dict[str, Any], config: Config, section: SearchConfig
) -> tuple[dict[str, Any], list[DenoiserPlan]]:
    """Return the settings of the first point, and a plan for each code of a training.

    UsageError for an invalid point.
    """
    search_config.refuse_invalid(values, section, parse)
    for cell in grid(config.sample, config.sweep):
        refuse_files_of_the_training(config.sample, cell, "a search")
    fetch_networks(config)
    preflight(config, "train")
    meta = open_store(PREPARED / "train", PreparedMeta).meta
    plans = _plan_points(values, section, meta)
    check_scoring(config)
    first = parse(with_fields(values, search_config.grid(section)[0]), "search")
    return first.model_dump(mode="json"), plans


def _plan_points(values: dict[str, Any], section: SearchConfig, meta: dict[str, Any]) -> list[DenoiserPlan]:
    """Return a plan for each code of a training; UsageError for an invalid point.

    Also if the losses of two points, by which the search prunes, cannot be compared.
    """
    plans: dict[str, DenoiserPlan] = {}

    def plan(changed: dict[str, Any], origin: str) -> None:
        own = plan_training(parse(changed, origin), meta, torch.device("cpu"))
        plans.setdefault(own.code[-1].digest, own)
        if section.prune and (field := changed_loss(next(iter(plans.values())), own)):
            found = f"search.prune compares validation losses, and the loss changes ({field})"
            raise UsageError(f"{found}: set prune: false, or leave that field out")

    search_config.refuse_invalid(values, section, plan)
    return list(plans.values())


def _report(options: Search, folder: Path, about: About, title: str, trials: list[Trial]) -> None:
    """Log and print the table, and how to use the best setting."""
    done = [one.number for one in trials if one.state == "done"]
    scores = {number: read_scores(trial_dir(folder, number) / trial_runs.SCORES) for number in done}
    if not scores:
        raise DiffctlError(f"none of the {len(trials)} trials has a score: see why in {folder}/trials")
    rows = setting_rows(trials, scores)
    best = trial_dir(folder, best_trial(rows[0], scores)) / PARAMS.name
    names = ("number", "point", "state", "value", "reason")
    values = {
        "folder": str(folder),
        "best": {"point": rows[0].point, "params": str(best)},
        "settings": [row.as_json() for row in rows],
        "trials": [{name: getattr(one, name) for name in names} for one in trials],
    }
    try:
        log_search(about.key, folder.name, title, values, {f"best/{rows[0].metric}": rows[0].value})
    except DiffctlError as error:
        problem = f"the table is not in MLflow ({error}): run the same command again, which only logs it"
        warnings.warn(problem, DiffctlWarning, stacklevel=2)
    options.answer(values, partial(_show, trials, rows, best))


def _show(trials: list[Trial], rows: list[SettingRow], best: Path) -> None:
    """Print the settings by score, the trials without one, and how to use the best setting."""
    names = list(rows[0].point)
    cells = []
    for place, row in enumerate(rows):
        between = "" if row.interval is None else f"{row.interval.low:.4g} to {row.interval.high:.4g}"
        mark = "<" if place == 0 else "?" if row.unscored else "≈" if row.tied else ""
        values = [describe_point({name: row.point[name]}).removeprefix(f"{name} ") for name in names]
        numbers = ", ".join(map(str, row.trials))
        cells.append((*values, numbers, row.cell, f"{row.value:.5g}", between, mark))
    print_table((*names, "TRIALS", "CELL", rows[0].metric, "95%", ""), cells)
    typer.echo("< the best; of several seeds the mean, with the interval of that mean")
    if any(row.tied for row in rows):
        typer.echo("≈ not significantly worse: the gap is within its confidence interval")
    if any(row.unscored for row in rows[1:]):
        typer.echo("? the mean is too good: other seeds were pruned or failed, so these settings are last")
    for one in trials:
        if one.state in ("pruned", "failed"):
            why = f": {one.reason}" if one.reason else f" after step {max(one.reports, default=0):,}"
            typer.echo(f"trial {one.number} {one.state}{why} ({describe_point(one.point)})")
    typer.echo(f"\nbest: `diffctl use {best}` makes it params.yaml; its scores and model are there too")
