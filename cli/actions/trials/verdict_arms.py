"""The arms of a verdict from its options: read, with equal work, and identified."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from cli.actions.project.params_file import find_profile, parse_assignments
from cli.commands.verdict import Verdict
from cli.shared.process import command_line
from diffusion.code_digest import (
    code_digest,
    module_digests,
    module_tree,
    modules_of,
    syntax_digest,
    torch_version,
)
from diffusion.evaluate import sweep_scores
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.evaluate.features.reference_features import extraction
from diffusion.evaluate.scores.scorer import MIN_FOR_INTERVAL
from diffusion.images.store import open_store
from diffusion.images.store_meta import PreparedMeta
from diffusion.layout import HELD_OUT, MODEL, PARAMS, VERDICT_RUNS
from diffusion.model.classifier import ClassifierArtefact
from diffusion.model.model_file import read_artefact, read_description
from diffusion.protocol.grid import SAMPLING_VERSION, cell_settings
from diffusion.sample.sampling_card import code_of_models
from diffusion.search.search_config import applied
from diffusion.search.search_dir import About
from diffusion.system.devices import acquire_device, default_device, device_name
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.params import read_params
from diffusion.system.section import fingerprint
from diffusion.train import validation_loss
from diffusion.verdict.arms import APART, Arm, refuse_files_of_the_training, refuse_other_losses
from diffusion.verdict.equal_work import (
    Ratio,
    flop_ratios,
    refuse_steps,
    time_ratios,
    with_equal_work,
)
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
        changes.append(Arm(" ".join(group), applied(own, point, "")))
    if options.seeds_apart:
        changes.append(Arm("other seeds", control.values, APART))
    elif not changes:
        changes.append(Arm(PARAMS.name, own))
    arms = [control, *changes]
    if options.stratified:
        fixed = {"process.stratified": True}
        arms = [replace(one, values=applied(one.values, fixed, "")) for one in arms]
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
    seed = control.config.train.seed
    models = [arm.fingerprint(seed) for arm in arms] if subject == "training" else [_model_sha256()]
    settings = {
        "models": models,
        "images": [{**arm.card(options.cell), "num_images": arm.config.sample.num_images} for arm in arms],
        "evaluate": control.config.evaluate.model_dump(mode="json"),
        "pairs": options.looks,
        "metric": options.metric,
    }
    if options.metric == "loss":
        settings["scoring"] = _loss_scoring(control)
    elif subject == "training":
        settings["scoring"] = [_scoring(arm, options.cell, bases) for arm in arms]
    if bases:
        settings["bases"] = dict(bases)
    if options.equal == "time":
        settings["equal"] = {"time": device_name(default_device())}  # another machine has other steps
    digests = control.plan.data.digest, open_store(HELD_OUT, PreparedMeta).digest
    key = fingerprint({**settings, "data": digests})
    names = {"control": control.name, "changes": [arm.name for arm in arms[1:]], "cell": cell.name}
    code = [arm.plan.code[-1].digest for arm in arms]
    config = control.config.model_dump(mode="json")
    return VERDICT_RUNS / key, About(
        key=key,
        data_digest=digests[0],
        heldout_digest=digests[1],
        settings=config,
        search={**settings, **names, "code": code},
    )


def refuse_other_code(about: About, number: int, values: dict[str, Any]) -> None:
    """Raise DiffctlError if the code or a file that decides a score of the verdict is not that of its start.

    `values` are the params.yaml of the training with this number.
    """
    known, arm = about.search, Arm(PARAMS.name, values)
    if "code" not in known:
        return  # an older version stored none
    place = number % len(known["code"])
    if known["metric"] == "loss":
        is_same = known["scoring"] == _loss_scoring(arm)
    else:
        is_same = _sampling(arm, None, about.bases).items() <= known["scoring"][place].items()
    if not is_same or known["code"][place] != arm.plan.code[-1].digest:
        found = "the code, torch, the guide or the classifier changed since this verdict began"
        raise DiffctlError(f"{found}: restore it to resume, or run the command again for another verdict")


def _scoring(arm: Arm, name: str | None, bases: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides an arm's scores next to its settings.

    Features of a reference depend on the same `evaluation`: scores with a stale one are refused.
    """
    evaluation = [extraction(space_extractor(space)) for space in arm.config.evaluate.spaces]
    return {**_sampling(arm, name, bases), "evaluation": evaluation}


def _sampling(arm: Arm, name: str | None, bases: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides an arm's scores next to settings and features: guide, classifier and code."""
    settings = cell_settings(arm.config.sample, arm.cell(name))
    guide = read_artefact(Path(settings.guide)) if settings.needs_guide and settings.guide else None
    classifier = None
    if settings.has_classifier and settings.classifier:
        classifier = read_description(Path(settings.classifier), ClassifierArtefact)
    base = fixed_base(arm.config.sample.base, bases)
    others = guide, None if base is None else read_artefact(base)
    models = [arm.plan, *(one for one in others if one is not None)]
    code = code_digest(code_of_models(settings, models, classifier))
    return {
        "networks": [one and one.model_sha256 for one in (guide, classifier)],
        "sampling": [SAMPLING_VERSION, torch_version(), code],
        "scores": code_digest(module_digests(sweep_scores.__name__)),
    }


def _loss_scoring(control: Arm) -> dict[str, Any]:
    """Return what decides the validation losses of all arms next to their trainings.

    The module of the loss changes no training, so that other digests leave it out.
    """
    module = validation_loss.__name__
    tree = module_tree(module)
    code = {**module_digests(*sorted(modules_of(tree))), module: syntax_digest(tree)}
    images = control.config.train.val_images
    return {"torch": torch_version(), "val_images": images, "code": code_digest(code)}


def _model_sha256() -> str:
    if not MODEL.is_file():
        raise UsageError(f"a change of the sampling is judged with {MODEL}, which is missing: `diffctl run`")
    return read_artefact(MODEL).model_sha256
