"""A verdict on changes of params.yaml: the arms, the work that decides, and what is printed and logged."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import typer

from cli.actions.scores.model_sweep import check_networks, check_scoring
from cli.actions.trials.trial_process import score_trial, trial_runner
from cli.actions.trials.verdict_arms import (
    check_options,
    count_equal_work,
    identify,
    origin,
    read_arms,
    time_equal_work,
)
from cli.actions.trials.verdict_judge import Judge
from cli.actions.trials.verdict_trials import PROGRESS, VerdictTrials
from cli.trials.trial_commands import Verdict
from diffusion.check import preflight
from diffusion.check.cost_estimate import format_duration
from diffusion.check.findings import Project
from diffusion.check.timing import step_work, time_sampling
from diffusion.choice.paired_test import PairedTest
from diffusion.config import parse
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import MODEL, PREPARED, REFERENCE, VERDICT_RUNS
from diffusion.protocol.grid import Cell, cell_settings
from diffusion.protocol.scores_document import CellScores
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.devices import acquire_device
from diffusion.system.errors import DiffctlError, DiffctlWarning, UsageError
from diffusion.system.locks import file_lock
from diffusion.system.output_paths import write_output_text
from diffusion.system.section import fingerprint
from diffusion.trials import trial_runs
from diffusion.trials.trial_inputs import Inputs
from diffusion.trials.trial_runs import About
from diffusion.verdict.arms import Arm, common_subject
from diffusion.verdict.outcome import Outcome, SamplingOutcome
from diffusion.verdict.page import render_verdict
from flows.dvc_pull import fetch_networks
from flows.sweep_cells import hold_samples
from tracking.keys import title_of
from tracking.runs.base_models import fix_bases
from tracking.verdict_runs import log_verdict

ERROR = 0.05  # of a verdict on all of its changes
TIMED_STEPS = 4  # of an arm's training, with whole batches: part of a step's time does not depend on them
TIMED_SECONDS = 3.0  # for measuring the sampling of an arm
TRIAL_SECONDS = 12.0  # of a training's process for imports, scores and files, on two cores


def judge_changes(options: Verdict) -> None:
    arms = read_arms(options)
    if options.metric != "loss" and not PREPARED.exists():
        raise UsageError(f"{PREPARED} and {REFERENCE} are missing: `dvc repro reference` makes both")
    for arm in arms:
        fetch_networks(arm.config)
    subject = common_subject(arms[0], arms[1:], options.cell)
    check_options(options, arms, subject)
    arms, ratios = count_equal_work(options, arms)
    with hold_samples():  # before the fetch: `diffctl prune` removes fetched models
        bases = {} if options.metric == "loss" else fix_bases(arm.config.sample.base for arm in arms)
        folder, about = identify(arms, options, subject, bases)
        if options.metric != "loss":
            check_scoring(arms[0].config)
            for arm in arms[1:]:  # their reference and extractors are equal
                check_networks(arm.config)
        busy = f"this verdict is running ({folder}): wait for it or stop it"
        with file_lock(folder / trial_runs.LOCK, timeout=0, busy=busy):
            about = trial_runs.open_about(folder, about)
            _print_other_pairs(about)
            arms, ratios = time_equal_work(options, folder, arms, ratios)
            test = PairedTest(*options.looks, ERROR / len(arms[1:]))
            judge = _judge_trainings if subject == "training" else partial(_judge_samples, about=about)
            values, outcomes = judge(options, folder, arms, test)
            inputs = {"folder": str(folder), "subject": subject, "control": arms[0].name}
            values = {**inputs, **values, **origin()}
            values["changes"] = [one.as_json() for one in outcomes]
            for one, arm, ratio in zip(values["changes"], arms[1:], ratios, strict=True):
                one["steps"] = [arms[0].config.train.steps, arm.config.train.steps]
                one["step_cost"] = ratio
            page = render_verdict(values, outcomes)
            if options.html is not None:
                write_output_text(options.html, page)
            _log(about.key, arms[0], values, page)
    options.answer(values, partial(_show, outcomes, values["seconds"]))
    if options.html is not None:
        typer.echo(f"page: {options.html}", err=options.as_json)


def _log(key: str, control: Arm, values: dict[str, Any], page: str) -> None:
    """Log the verdict to MLflow, or warn that it is not there."""
    try:
        log_verdict(key, title_of(control.config.data.name), values, page)
    except DiffctlError as error:
        problem = f"the verdict is not in MLflow ({error}): run the same command again, which only logs it"
        warnings.warn(problem, DiffctlWarning, stacklevel=2)


def _judge_trainings(
    options: Verdict, folder: Path, arms: Sequence[Arm], test: PairedTest
) -> tuple[dict[str, Any], Sequence[Outcome]]:
    """Return the outcome of pairs of trainings, and what they share."""
    control = arms[0]
    for arm in arms:
        preflight(arm.config, "train")
    images = control.config.sample.num_images
    if options.metric == "loss":
        images = min(control.config.train.val_images, len(open_store(PREPARED / "test", PreparedMeta)))
    trials = VerdictTrials(folder, arms, options.cell, images, options.metric)
    first_seed = control.config.train.seed
    _announce(arms, f"and the seeds of a pair, from {first_seed} on: {test.first} to {test.last} pairs")
    measure: Callable[[], float] = (lambda: 0.0) if options.ray else partial(_measure, trials)
    if options.seconds is not None and not trials.is_fixed:
        if options.ray or trials.has_begun:
            typer.echo(f"the first {test.first} pairs are trained whatever the budget is", err=True)
        else:
            _check_budget(options.seconds, measure() * len(arms), test)
    with trial_runner(options, control.config, folder) as runner:
        judge = Judge(trials, test, options.seconds, runner, measure)
        outcomes = judge.decide()
    values = {
        "cell": None if options.metric == "loss" else trials.cells[0].name,
        "images": trials.images,
        "metric": outcomes[0].metrics[0],
        "pairs": list(options.looks),
        "equal": options.equal,
        "error": ERROR,
        "level": test.level,
        "budget": options.seconds,
        "over_budget": judge.is_over_budget,
        "seconds": round(judge.seconds, 1),
    }
    return values, outcomes


def _judge_samples(
    options: Verdict, folder: Path, arms: Sequence[Arm], test: PairedTest, about: About
) -> tuple[dict[str, Any], Sequence[Outcome]]:
    """Return the outcome of samples of the project's model, and what they share."""
    control, *changes = arms
    _announce(arms, f"the model ({MODEL}), and each image's noise")
    scored = [
        _score_samples(arm, options.cell, folder / f"arm{number}", about, inputs)
        for number, (arm, inputs) in enumerate(zip(arms, about.inputs, strict=True))
    ]
    spec = scored[0].spec
    metrics = spec.distance, spec.kernel_distance
    metrics = metrics if options.metric == "fd" else metrics[::-1]
    outcomes = [
        SamplingOutcome(
            arm.name, tuple(arm.differences(control)), metrics, test.error, scores=(scored[0], one)
        )
        for arm, one in zip(changes, scored[1:], strict=True)
    ]
    values = {
        "cell": control.cell(options.cell).name,
        "images": scored[0].num_images,
        "metric": metrics[0],
        "error": ERROR,
        "seconds": None,
    }
    return values, outcomes


def _score_samples(arm: Arm, cell: str | None, folder: Path, about: About, inputs: Inputs) -> CellScores:
    """Return the scores of the arm's cell of the project's model, with the networks of the inputs."""
    chosen = arm.cell(cell)
    axes = {axis: [value] for axis, value in chosen.axes.items()}
    config = parse({**arm.values, "sweep": axes}, arm.name)
    document = score_trial(config, MODEL, folder, about, inputs)
    return document.cells[chosen.name]


def _announce(arms: Sequence[Arm], how: str) -> None:
    """Print the arms and what is equal in them."""
    control, *changes = arms
    typer.echo(f"control: {control.name}", err=True)
    for arm in changes:
        typer.echo(f"change: {', '.join(arm.differences(control)) or arm.name}", err=True)
    typer.echo(f"equal: all other settings, {how}", err=True)


def _print_other_pairs(about: About) -> None:
    """Print which other --pairs the same changes were judged with, to the first look or further."""
    names = dict.fromkeys(("pairs", "control", "changes", "cell"))  # the settings tell arms and cells apart
    for path in VERDICT_RUNS.glob(f"*/{PROGRESS}"):
        try:
            other = read_checksummed_json(path.with_name(trial_runs.ABOUT), About)
        except (FileNotFoundError, DiffctlError):
            continue  # a damaged verdict prevents no other
        known, wanted = (fingerprint({**one.search, **names, "inputs": one.inputs}) for one in (other, about))
        if other.key != about.key and known == wanted:
            first, last = other.search["pairs"]
            found = f"these changes were judged with --pairs {first}..{last} too"
            typer.echo(f"{found}: both verdicts together err in more than {ERROR:.0%}", err=True)


def _check_budget(budget: float, pair: float, test: PairedTest) -> None:
    """Print the time of pairs of `pair` seconds each; UsageError if the first look exceeds the budget."""
    needs = [f"{count} pairs need about {format_duration(count * pair)}" for count in (test.first, test.last)]
    if test.first * pair > budget:
        raise UsageError(f"--budget: {needs[0]} here: give more time, or train fewer steps")
    typer.echo(f"{needs[1]} here, and the budget is {format_duration(budget)}", err=True)


def _measure(trials: VerdictTrials) -> float:
    """Return the estimated duration of a training, the mean of all arms, by a measurement."""
    with acquire_device(partial(typer.echo, err=True)) as device:
        each = zip(trials.arms, trials.cells, strict=True)
        return fmean(_trial_seconds(arm, cell, trials, device) for arm, cell in each)


def _trial_seconds(arm: Arm, cell: Cell, trials: VerdictTrials, device: torch.device) -> float:
    """Return the estimated duration of a training with its samples and scores."""
    config, plan = arm.config, arm.plan
    steps = step_work(Project(config), plan, device)(config.train.batch_size, TIMED_STEPS)
    seconds = TRIAL_SECONDS + median(steps[1:] or steps) * config.train.steps  # the first one warms up
    if trials.metric == "loss":
        return seconds
    call = time_sampling(plan, config, TIMED_SECONDS, device)
    calls = count_nfe(cell_settings(config.sample, cell), plan.process)
    return seconds + call.median * calls * trials.images


def _show(outcomes: Sequence[Outcome], seconds: float | None) -> None:
    for one in outcomes:
        typer.echo(f"{one.name}: {one.sentence(seconds)}" if len(outcomes) > 1 else one.sentence(seconds))
        for text in [] if one.failure else [*one.disagreements(), *one.warnings()]:
            typer.echo(f"  {text}")
