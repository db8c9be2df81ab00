"""The arms of a verdict from its options: read, with equal work, and identified."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import typer

from cli.actions.project.params_file import find_profile, parse_assignments
from cli.shared.process import command_line
from cli.trials.trial_commands import Verdict
from diffusion.evaluate.scores.scorer import MIN_FOR_INTERVAL
from diffusion.layout import PARAMS, VERDICT_RUNS
from diffusion.system.devices import acquire_device, default_device, device_name
from diffusion.system.errors import UsageError
from diffusion.system.params import read_params, with_fields
from diffusion.system.section import fingerprint
from diffusion.trials.trial_inputs import Inputs, inputs_of_loss, inputs_of_samples, inputs_of_scores
from diffusion.trials.trial_runs import About
from diffusion.verdict.arms import APART, Arm, refuse_files_of_the_training, refuse_other_losses
from diffusion.verdict.equal_work import Ratio, flop_ratios, refuse_steps, time_ratios, with_equal_work
from tracking.keys import GIT_COMMIT, GIT_DIRTY, git_tags
from tracking.runs.base_models import fixed_base


def read_arms(options: Verdict) -> list[Arm]:
    """Return the control and its changes; UsageError for an invalid one."""
    own = read_params()
    control = Arm(PARAMS.name, own)
    if options.against is not None:
        file = find_profile(options.against)
        control = Arm(str(file), read_params(file))
    texts = [text for text in options.changes or [] if "=" in text]
    wanted = "KEY=VALUE, no profile and no file"
    files = [find_profile(text, wanted) for text in options.changes or [] if "=" not in text]
    groups = [[text] for text in texts] if options.each else [texts] if texts else []
    changes = [Arm(str(file), read_params(file)) for file in files]
    for group in groups:
        point = parse_assignments(group, "verdict")
        if "train.seed" in point:
            raise UsageError("train.seed: both trainings of a pair have the control's seed: set it there")
        changes.append(Arm(" ".join(group), with_fields(own, point)))
    if options.seeds_apart:
        changes.append(Arm("other seeds", control.values, APART))
    elif not changes:
        changes.append(Arm(PARAMS.name, own))
    arms = [control, *changes]
    if options.stratified:
        fixed = {"process.stratified": True}
        arms = [replace(one, values=with_fields(one.values, fixed)) for one in arms]
    return arms


def check_options(options: Verdict, arms: Sequence[Arm], subject: str) -> None:
    """Raise UsageError for options without effect, and for arms that they do not fit."""
    of_trainings = {
        "--metric loss": options.metric == "loss",
        f"--equal {options.equal}": options.equal != "steps",
        "--pairs": options.pairs is not None,
        "--budget": options.budget is not None,
        "--stratified": options.stratified,
        "--ray": options.ray,
    }
    given = [flag for flag, is_given in of_trainings.items() if is_given]
    if subject == "sampling" and given:
        raise UsageError(f"{given[0]} is of trainings, and the change is of the sampling alone: leave it out")
    if subject == "sampling" and not arms[0].config.evaluate.confidence_intervals:
        raise UsageError("evaluate.confidence_intervals: samples are judged by them: set it to true")
    if subject == "sampling" and arms[0].config.sample.num_images < MIN_FOR_INTERVAL:
        few = f"intervals of scores need {MIN_FOR_INTERVAL} images or more"
        raise UsageError(f"sample.num_images: {few}, and samples are judged by them")
    if options.ray and len({arm.config.train.devices for arm in arms}) > 1:
        raise UsageError("train.devices: with --ray it is equal in all arms: leave it out of the change")
    if subject == "training" and options.metric != "loss":
        refuse_files_of_the_training(arms[0].config.sample, arms[0].cell(options.cell), "a verdict")
    if options.metric == "loss":
        refuse_other_losses(arms[0], arms[1:], equal_steps=options.equal == "steps")


def count_equal_work(options: Verdict, arms: Sequence[Arm]) -> tuple[list[Arm], list[Ratio | None]]:
    """Return the arms, of equal FLOPs if that is requested, and the cost of the changes' steps if known."""
    control, *changes = arms
    if options.equal == "steps":
        return list(arms), [None] * len(changes)
    refuse_steps(control, changes, options.equal)
    if options.equal == "time":
        return list(arms), [None] * len(changes)
    return _with_ratios(arms, flop_ratios(arms), "FLOPs")


def time_equal_work(
    options: Verdict, folder: Path, arms: Sequence[Arm], ratios: Sequence[Ratio | None]
) -> tuple[list[Arm], list[Ratio | None]]:
    """Return the arms, of equal time if that is requested, by measurements that the folder keeps."""
    if options.equal != "time":
        return list(arms), list(ratios)

    def device() -> AbstractContextManager[torch.device]:
        typer.echo("measuring the seconds of a step, the arms in turns", err=True)
        return acquire_device(partial(typer.echo, err=True))

    return _with_ratios(arms, time_ratios(folder, arms, device), "seconds")


def _with_ratios(
    arms: Sequence[Arm], ratios: Sequence[Ratio], unit: str
) -> tuple[list[Arm], list[Ratio | None]]:
    control, *changes = arms
    scaled = with_equal_work(control, changes, ratios)
    for arm, ratio in zip(scaled, ratios, strict=True):
        own, other = arm.config.train.steps, control.config.train.steps
        steps = f"{own:,} steps, and {other:,} of the control"
        steps = steps if ratio.is_clear else f"no clear difference, {other:,} steps in both"
        typer.echo(f"{arm.name}: a step takes {ratio} times the control's {unit}: {steps}", err=True)
    return [control, *scaled], list(ratios)


def origin() -> dict[str, str | None]:
    """Return the machine, the commit of the project, with a + if there are edits, and the command."""
    tags, version = git_tags(), torch.__version__.partition("+")[0]
    return {
        "machine": f"{device_name(default_device())}, torch {version}",
        "commit": tags[GIT_COMMIT][:7] + "+" * (tags[GIT_DIRTY] == "true") if tags else None,
        "command": command_line(),
    }


def identify(
    arms: Sequence[Arm], options: Verdict, subject: str, bases: Mapping[str, str]
) -> tuple[Path, About]:
    """Return the folder of the verdict, by what decides its result but the budget, and its settings.

    `bases` are the SHA-256 of the files of base models by name, which may mean another model tomorrow.
    """
    control, cell = arms[0], arms[0].cell(options.cell)
    settings = {
        "images": [{**arm.card(options.cell), "num_images": arm.config.sample.num_images} for arm in arms],
        "evaluate": control.config.evaluate.model_dump(mode="json"),
        "pairs": options.looks,
        "metric": options.metric,
    }
    if subject == "training":
        settings["models"] = [arm.fingerprint(control.config.train.seed) for arm in arms]
    if options.equal == "time":
        settings["equal"] = {"time": device_name(default_device())}  # another machine has other steps
    inputs = [_inputs(arm, options, subject, bases) for arm in arms]
    key = fingerprint({**settings, "inputs": inputs})
    names = {"control": control.name, "changes": [arm.name for arm in arms[1:]], "cell": cell.name}
    config = control.config.model_dump(mode="json")
    about = About(key=key, settings=config, search={**settings, **names}, bases=dict(bases), inputs=inputs)
    return VERDICT_RUNS / key, about


def _inputs(arm: Arm, options: Verdict, subject: str, bases: Mapping[str, str]) -> Inputs:
    """Return what decides the scores of an arm next to its settings."""
    if options.metric == "loss":
        return inputs_of_loss(arm.plan)
    cell, base = arm.cell(options.cell), fixed_base(arm.config.sample.base, bases)
    if subject == "sampling":
        return inputs_of_samples(arm.config.sample, arm.config.evaluate, cell, base)
    return inputs_of_scores(arm.config.sample, arm.config.evaluate, arm.plan, [cell], base)
