"""The file of a cascade's base model; one of MLflow is pinned by its SHA-256 when a command fetches it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diffusion.layout import BASE_RUNS, MODEL_RUNS
from diffusion.protocol.base_model import BaseConfig
from diffusion.system.checksums import read_json
from diffusion.system.errors import UsageError
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
        return MODEL_RUNS / read_json(_pin(base), PinnedBase).sha256 / "model.safetensors"
    except FileNotFoundError:
        return None


def base_file(base: BaseConfig) -> Path:
    """Return the path of the base's file; UsageError if it is not here."""
    path = base_path(base)
    if path is None or not path.is_file():
        how = "give the path of a model's file" if base.file else "`diffctl stage sample` fetches it"
        raise UsageError(f"there is no base {base}: {how}")
    return path


def _pin(base: BaseConfig) -> Path:
    return BASE_RUNS / f"{fingerprint(base.model_dump(exclude={'sampling'}))}.json"
