"""Checks of what guides the model: whether the files exist and fit, and whether DVC detects their changes."""

from collections.abc import Iterator
from pathlib import Path

from diffusion.check.findings import Finding, Project
from diffusion.check.stage_dependencies import stage_dependencies
from diffusion.layout import AVERAGES, MODEL
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.guidance_rules import ema_guide
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import check_networks
from diffusion.system.errors import DiffctlError
from diffusion.system.repository import GRAPH


def check_guides(project: Project) -> Iterator[Finding]:
    """Check guides and classifiers of the sweep. A file must be a dependency of the stage `sample`."""
    sample, cells = project.config.sample, grid(project.config.sample, project.config.sweep)
    used = {cell: settings for cell in cells if (settings := cell_settings(sample, cell)).is_guided}
    deps = stage_dependencies(project.root).get("sample")
    for file in sorted({file for settings in used.values() for file in _files(settings)}):
        if deps is not None and not deps & {str(path) for path in (Path(file), *Path(file).parents)}:
            message = f"{file} is no dependency of the stage sample, so DVC does not detect its changes"
            yield Finding("error", "sampling", message, f"add `- {file}` to the deps of sample in {GRAPH}")
    by_networks = {(one.guide, one.classifier, one.has_classifier): one for one in used.values()}
    has_guides = any(one.needs_guide or one.has_classifier for one in used.values())
    for settings in by_networks.values() if has_guides and project.is_trained else ():
        try:
            check_networks(settings, project.root / MODEL, project.root / AVERAGES)
        except DiffctlError as error:
            yield Finding("error", "sampling", str(error))


def _files(settings: SampleSettings) -> Iterator[str]:
    """Yield the files that the settings name; an EMA profile is made from a dependency."""
    if settings.needs_guide and settings.guide and ema_guide(settings.guide) is None:
        yield settings.guide
    if settings.has_classifier and settings.classifier:
        yield settings.classifier
