"""Checks that find in seconds what would fail later, each with a remedy."""

from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion.check.cost_estimate import check_cost
from diffusion.check.data_checks import check_fit, check_prepared, check_raw
from diffusion.check.disk_space import check_disk, check_training_disk
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import check_device, check_memory, check_runner, check_weights
from diffusion.check.run_checks import (
    check_averages,
    check_eta,
    check_guidance,
    check_protocol,
    check_start,
)
from diffusion.config import Config
from diffusion.system.errors import UsageError

Check = Callable[[Project], Iterator[Finding]]

ALL: tuple[Check, ...] = (
    check_raw,
    check_prepared,
    check_fit,
    check_eta,
    check_guidance,
    check_averages,
    check_device,
    check_runner,
    check_memory,
    check_disk,
    check_weights,
    check_protocol,
    check_start,
    check_cost,
)
OF_STAGE: dict[str, tuple[Check, ...]] = {
    "reference": (check_weights,),
    "train": (check_prepared, check_fit, check_eta, check_memory, check_training_disk),
    "sample": (check_eta, check_averages),
    "evaluate": (check_weights,),
}  # other stages check their inputs themselves, immediately


def check(config: Config, root: Path = Path()) -> list[Finding]:
    """Run all checks of the project in `root`."""
    return list(iter_findings(config, root))


def iter_findings(config: Config, root: Path = Path()) -> Iterator[Finding]:
    """Run all checks, and yield each finding immediately."""
    return _run(ALL, Project(config, root))


def preflight(config: Config, stage: str, root: Path = Path()) -> list[Finding]:
    """Run a stage's checks and return their warnings; UsageError with the remedy of the first error."""
    findings = list(_run(OF_STAGE[stage], Project(config, root)))
    for finding in findings:
        if finding.level == "error":
            raise UsageError(": ".join(part for part in (finding.message, finding.remedy) if part))
    return [finding for finding in findings if finding.level == "warning"]


def _run(checks: tuple[Check, ...], project: Project) -> Iterator[Finding]:
    return (finding for one in checks for finding in one(project))
