"""Reading params.yaml: all of it as plain values, or one section as its own class."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import create_model

from diffusion.system.errors import UsageError
from diffusion.system.section import Kind, validated

PARAMS = "params.yaml"


def read_params(path: Path | str = PARAMS) -> Any:
    """The plain values of a params file; UsageError for a missing or unreadable one."""
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not here: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None


def load_sections(kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """The sections that are fields of `kind`, whatever the others hold; UsageError as loading all gives."""
    values = read_params(path)
    if isinstance(values, dict):
        values = {name: section for name, section in values.items() if name in kind.model_fields}
    return validated(kind, values, str(path))


def load_section(name: str, kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """One section, as `load_sections`."""
    fields: Any = {name: (kind, ...)}
    alone = create_model("Params", **fields)
    section: Kind = getattr(load_sections(alone, path), name)
    return section
