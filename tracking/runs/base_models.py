"""Base models of cascades that are in MLflow."""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from diffusion.model.model_file import read_artefact
from diffusion.protocol.base_model import BaseConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.base_file import base_file, fetched_base, fetched_file, pin_base
from diffusion.sample.network_files import NetworkFiles, network_files, not_of_the_scores
from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.files import sha256_file
from tracking.registry.model_versions import cached_model
from tracking.registry.registered_models import fetch_version_files, find_version_model
from tracking.runs.scored_runs import fetch_model


def fetch_base(base: BaseConfig) -> Path:
    """Return the file of a base model, fetched if it is in MLflow.

    Without MLflow it is the one that a stage fetched last; UsageError without any.
    """
    with suppress(TemporaryError):
        if base.run_id is not None:
            return fetch_model(base.run_id)
        if base.champion is not None:
            return fetch_version_files(base.champion).files.model
    return base_file(base)


def update_base(base: BaseConfig | None) -> Path | None:
    """Fetch the base model of a stage, and pin it until the next call; None without one."""
    if base is None:
        return None
    path = fetch_base(base)
    if base.file is None:
        pin_base(base, path)
    return path


def fetch_scored_base(base: BaseConfig, card: Mapping[str, object]) -> Path:
    """Return the file of the base that a card names, as it was then; UsageError if it is nowhere."""
    digest = str(card.get("base_sha256"))
    known = fetched_base(base, digest) or (base.file is None and find_version_model(digest))
    path = known or fetch_base(base)
    if read_artefact(path).model_sha256 != digest:
        raise not_of_the_scores("base", path)
    return path


def fetch_scored_files(
    settings: SampleSettings, card: Mapping[str, object], model: Path, own: Path | None = None
) -> NetworkFiles:
    """Return the files for the settings of a card, as `network_files`; UsageError if one does not match it.

    The base is the one of the card. `own` is the training's own model if `model` is another average of its
    weights.
    """
    base = None if settings.base is None else fetch_scored_base(settings.base, card)
    files = network_files(settings, own or model, base)._replace(model=model)
    if wrong := files.read().find_difference(card):
        raise not_of_the_scores(wrong, getattr(files, wrong))
    return files


def fix_bases(bases: Iterable[BaseConfig | None]) -> dict[str, str]:
    """Fetch the bases that the trials of a search or a verdict share; return their files' SHA-256 by name."""
    fixed = {}
    for base in filter(None, bases):
        path = fetch_base(base)
        fixed[str(base)] = sha256_file(path)
        cached_model(fixed[str(base)], partial(_copy, path))
    return fixed


def _copy(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder))


def fixed_base(base: BaseConfig | None, fixed: Mapping[str, str]) -> Path | None:
    """Return the file of a base as `fix_bases` found it; one that it did not fetch is fetched now."""
    if base is None:
        return None
    if str(base) not in fixed:
        return fetch_base(base)
    path = fetched_file(fixed[str(base)])
    if not path.is_file():
        raise DiffctlError(
            f"{path}, the base {base} that all trials share, is missing: restore it, or begin again"
        )
    return path
