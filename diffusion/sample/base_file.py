"""The file of a cascade's base model; one of MLflow is pinned by its SHA-256 when a command fetches it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diffusion.layout import BASE_RUNS, MODEL_RUNS
from diffusion.model.model_file import read_artefact
from diffusion.protocol.base_model import BaseConfig
from diffusion.system.checksums import read_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file, write_json
from diffusion.system.section import Section, fingerprint

IN_CODE_DIGEST = False  # diffusion/code_digest.py


class PinnedBase(Section):
    """The model that a name in MLflow meant when it was fetched last."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def pin_base(base: BaseConfig, fetched: Path) -> None:
    """Record the fetched file, in MODEL_RUNS, as what the base means from now on."""
    path = _pin(base)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"sha256": sha256_file(fetched)})


def base_path(base: BaseConfig) -> Path | None:
    """Return the path of the base's file, which may be missing; None for one that was not fetched."""
    if base.file is not None:
        return Path(base.file)
    try:
        return fetched_file(read_json(_pin(base), PinnedBase).sha256)
    except FileNotFoundError:
        return None


def base_file(base: BaseConfig) -> Path:
    """Return the path of the base's file; UsageError if it is not here."""
    path = base_path(base)
    if path is None or not path.is_file():
        how = "give the path of a model's file" if base.file else "`diffctl stage sample` fetches it"
        raise UsageError(f"there is no base {base}: {how}")
    return path


def fetched_file(sha256: str) -> Path:
    """Return the path of a fetched model, by the SHA-256 of its file."""
    return MODEL_RUNS / sha256 / "model.safetensors"


def fetched_base(base: BaseConfig, model_sha256: str) -> Path | None:
    """Return the fetched file of this digest of weights, although the base may be another model by now.

    None if it was not fetched, and for a base that is a file of the project.
    """
    if base.file is not None:
        return None
    pinned = base_path(base)
    paths = [*([] if pinned is None else [pinned]), *MODEL_RUNS.glob("*/model.safetensors")]
    return next((path for path in paths if _digest(path) == model_sha256), None)


def _digest(path: Path) -> str | None:
    try:
        return read_artefact(path).model_sha256
    except DiffctlError:
        return None  # it is missing or damaged, or a classifier


def _pin(base: BaseConfig) -> Path:
    return BASE_RUNS / f"{fingerprint(base.model_dump(exclude={'sampling'}))}.json"
