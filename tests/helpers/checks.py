"""Configurations and findings for the tests of checks."""

from collections.abc import Iterable
from typing import Any

from diffusion.check.findings import Finding, Level
from diffusion.config import Config, parse
from tests.conftest import params


def configuration(**changes: dict[str, Any]) -> Config:
    """Return the configuration of the tests with changes in its sections."""
    return parse(params(**changes), "params")


def with_level(findings: Iterable[Finding], level: Level) -> dict[str, Finding]:
    """Return the findings of a level by their subjects."""
    return {finding.subject: finding for finding in findings if finding.level == level}
