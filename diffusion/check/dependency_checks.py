"""Checks of plugins and of the sweep's networks: whether they fit, and whether DVC detects their changes."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from diffusion.check.findings import Finding, Project
from diffusion.code_digest import module_digests
from diffusion.images.store import open_store
from diffusion.images.store_meta import CellMeta
from diffusion.layout import AVERAGES, GRAPH, MODEL, SAMPLES, dvc_stages
from diffusion.model.model_file import Artefact, read_artefact, warn_of_edited_plugins
from diffusion.protocol.grid import grid
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import LEARNED
from diffusion.sample import guides
from diffusion.sample.base_file import base_file, base_path
from diffusion.sample.ema_files import matching_snapshots
from diffusion.sample.network_files import (
    check_base_settings,
    check_future_model,
    check_networks,
    named_files,
)
from diffusion.sample.sampling_steps import check_learned_times
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.params import changed_fields
from diffusion.system.registry import PLUGINS, REGISTRIES, SLOW_IMPORTS, Registry, load_reference
from diffusion.train.plan import plan_artefact

REFERENCE = re.compile(r"[\w.]+:[\w.]+")


def check_plugins(project: Project) -> Iterator[Finding]:
    """List the entries of plugins, with what is wrong with each."""
    for library in SLOW_IMPORTS:
        message = f"{PLUGINS}/__init__.py loads {library}, and every command loads that file"
        yield Finding("warning", PLUGINS, message, "import it only in modules that entries name")
    for registry in REGISTRIES:
        for name in registry.plugins:
            yield _check_entry(registry, name)


def _check_entry(registry: Registry[Any], name: str) -> Finding:
    """Return whether the code that an entry names can be imported."""
    entry, subject = registry[name], f"{registry.key} {name}"
    values = [getattr(entry, one.name) for one in fields(entry)] if is_dataclass(entry) else []
    try:
        for value in values:
            if isinstance(value, str) and REFERENCE.fullmatch(value):
                load_reference(value)
        module_digests(registry.module(name))
    except UsageError as error:
        return Finding("error", PLUGINS, f"{subject}: {error}")
    return Finding("ok", PLUGINS, f"{subject}: {registry.module(name)}")


def check_dependencies(project: Project) -> Iterator[Finding]:
    """Check that the sweep's networks and learned times are dependencies of the stage sample."""
    config, stage = project.config, dvc_stages().get("sample")
    if stage is None:
        return
    deps = set(map(str, stage.get("deps") or ()))
    files = {file for settings in project.cells.values() for file in named_files(settings)}
    is_learned = LEARNED in (config.sweep.spacing or (config.sample.spacing,))
    if is_learned and (learned := config.sample.spacing_options.get("file")):
        files.add(learned)
    for file in sorted(files):
        if not _is_within(file, deps):
            message = f"{file} is no dependency of the stage sample, so DVC does not detect its changes"
            yield Finding("error", "sampling", message, f"add `- {file}` to the deps of sample in {GRAPH}")


def check_times(project: Project) -> Iterator[Finding]:
    """Check that learned times are of the model in models/; the one that a training will make is unknown."""
    models = {settings.spacing_options.get("model_sha256") for settings in project.cells.values()} - {None}
    if models and project.is_training_due:
        message = "a training is due, and the stage sample refuses learned times of another model"
        yield Finding("warning", "sampling", message, "make new ones with `diffctl grid` after the training")
    elif models:
        own = read_artefact(MODEL).model_sha256
        try:
            for settings in project.cells.values():
                check_learned_times(settings, own)
        except UsageError as error:
            yield Finding("error", "sampling", str(error))


def check_guides(project: Project) -> Iterator[Finding]:
    """Check EMA profiles and networks of the sweep, except files that a stage will make."""
    guided = [one for one in project.cells.values() if one.needs_guide or one.has_classifier or one.base]
    listed = (one for stage in dvc_stages().values() for one in stage.get("outs") or ())
    outs = {path for one in listed for path in ([one] if isinstance(one, str) else one)}

    def is_awaited(file: str) -> bool:
        return not Path(file).is_file() and _is_within(file, outs)

    by_networks = {(one.guide, one.classifier, one.has_classifier): one for one in guided}
    try:
        if project.is_trained and project.config.sweep.sigma_rels:
            matching_snapshots(MODEL)
        for settings in by_networks.values():
            if not any(map(is_awaited, named_files(settings))):
                _check_networks(project, settings)
    except DiffctlError as error:
        yield Finding("error", "sampling", str(error))


def _check_networks(project: Project, settings: SampleSettings) -> None:
    """Raise DiffctlError if a guide or a classifier is missing or does not fit the model, trained or not."""
    if project.is_trained:
        check_networks(settings, MODEL, AVERAGES)
    else:
        plan = project.plan if project.is_ready else None  # without data, its classes are placeholders
        check_future_model(settings, None if plan is None else plan_artefact(plan))


def check_base(project: Project) -> Iterator[Finding]:
    """Check whether the base of a cascade fits the model; one in MLflow only if a stage has fetched it."""
    settings, plan = project.config.sample, project.plan
    base = settings.base
    if base is None or plan is None or base_path(base) is None:
        return
    try:
        artefact = read_artefact(base_file(base))
        if project.is_ready:  # else the plan's classes are placeholders
            guides.check_base(plan, artefact)
        check_base_settings(settings, artefact)
    except DiffctlError as error:
        yield Finding("error", "sampling", str(error))


def check_model(project: Project) -> Iterator[Finding]:
    """Check that the model in models/ is of the configuration, by any code and in any precision."""
    if changed := changed_settings(project):
        message = f"{MODEL} was trained with other settings ({', '.join(changed[:3])})"
        yield Finding("error", "model", message, "make it and what follows from it again with `diffctl run`")


def changed_settings(project: Project) -> list[str]:
    """Return the settings in which the model in models/ differs from params.yaml, by their names there.

    Empty without a model, or without a plan to compare it with. The precision is left out, since each machine
    chooses it.
    """
    if not MODEL.is_file() or not project.is_ready or project.plan is None:
        return []
    both = [_settings(one) for one in (read_artefact(MODEL), plan_artefact(project.plan))]
    known = (both[0].keys() & both[1].keys()) - {"train.precision"}  # older models have fewer
    return changed_fields(*({name: one[name] for name in known} for one in both))


def _settings(artefact: Artefact) -> dict[str, Any]:
    """Return the settings that a model was trained with, by their names in params.yaml, and its data."""
    values = artefact.model_dump(mode="json")
    sections = {"model": values["network"], **{name: values[name] for name in ("process", "train", "data")}}
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def check_samples(project: Project) -> Iterator[Finding]:
    """Check that every sampled cell is of the training in models/, of the model or an EMA profile."""
    if not MODEL.is_file():
        return
    artefact, config = read_artefact(MODEL), project.config
    warn_of_edited_plugins(MODEL, artefact)
    for path in (SAMPLES / cell.name for cell in grid(config.sample, config.sweep)):
        meta = open_store(path, CellMeta, unverified=True).meta if path.is_dir() else {}
        if meta and artefact.model_sha256 != (meta.get("average_of") or meta["card"].get("model_sha256")):
            message = f"the images in {path} are of another training than {MODEL}"
            yield Finding("error", "samples", message, "make them again with `diffctl stage sample`")


def _is_within(file: str, paths: set[str]) -> bool:
    """Return whether the file, or a folder that contains it, is one of the paths."""
    return not paths.isdisjoint(map(str, (Path(file), *Path(file).parents)))
