"""Checks of what guides the model: whether the files exist and fit, and whether DVC detects their changes."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from diffusion.check.findings import Finding, Project
from diffusion.layout import AVERAGES, MODEL
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.guidance_rules import ema_guide
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import CellFiles
from diffusion.system.errors import DiffctlError

GRAPH = "dvc.yaml"


def check_guides(project: Project) -> Iterator[Finding]:
    """Check guides and classifiers of the sweep. A file must be a dependency of the stage `sample`."""
    sample, cells = project.config.sample, grid(project.config.sample, project.config.sweep)
    used = {cell: settings for cell in cells if (settings := cell_settings(sample, cell)).is_guided}
    deps = _sample_deps(project.root)
    for file in sorted({file for settings in used.values() for file in _files(settings)}):
        if deps is not None and not any(dep in (Path(file), *Path(file).parents) for dep in deps):
            message = f"{file} is no dependency of the stage sample, so DVC does not detect its changes"
            yield Finding("error", "sampling", message, f"add `- {file}` to the deps of sample in {GRAPH}")
    has_guides = any(settings.needs_guide or settings.has_classifier for settings in used.values())
    if not has_guides or not project.is_trained:
        return
    try:
        CellFiles(project.root / MODEL, sample, used, project.root / AVERAGES)
    except DiffctlError as error:
        yield Finding("error", "sampling", str(error))


def _files(settings: SampleSettings) -> Iterator[str]:
    """Yield the files that the settings name; an EMA profile is made from a dependency."""
    if settings.needs_guide and settings.guide and ema_guide(settings.guide) is None:
        yield settings.guide
    if settings.has_classifier and settings.classifier:
        yield settings.classifier


def _sample_deps(root: Path) -> list[Path] | None:
    """Return the dependencies of the stage `sample`; None if dvc.yaml cannot be read."""
    try:
        return [Path(dep) for dep in yaml.safe_load((root / GRAPH).read_text())["stages"]["sample"]["deps"]]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return None
