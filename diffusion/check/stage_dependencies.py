"""The dependencies of the stages in dvc.yaml."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from diffusion.system.repository import GRAPH

StageDependencies = Mapping[str, set[str]]
"""Paths by the names of stages."""


def stage_dependencies(root: Path) -> StageDependencies:
    """Return the dependencies of each stage of dvc.yaml; empty without the file, or if it is invalid."""
    try:
        stages = yaml.safe_load((root / GRAPH).read_text(encoding="utf-8"))["stages"]
        return {name: {str(dep) for dep in stage.get("deps", [])} for name, stage in stages.items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return {}
