"""params.yaml: all sections as plain values, or one section as its class."""

from pathlib import Path
from typing import Any

from pydantic import create_model

from diffusion.system.errors import UsageError
from diffusion.system.files import read_regular
from diffusion.system.renamed import refuse_renamed
from diffusion.system.section import Kind, brief, validate
from diffusion.system.yaml_text import parse_yaml

PARAMS = "params.yaml"
MAX_TEXT = 300  # characters of a path or a reason
MAX_BYTES = 64 * 2**10  # of a params file; the profiles have two thousand


def read_params(path: Path | str = PARAMS, earlier_names: bool = False) -> dict[str, Any]:
    """Return the sections of a params file as plain values; UsageError if it is missing or unreadable.

    UsageError for keys of earlier versions too, unless `earlier_names` allows them.
    """
    shown = brief(path, str, MAX_TEXT)
    try:
        values = parse_yaml(read_regular(Path(path), MAX_BYTES).decode())
    except FileNotFoundError:
        raise UsageError(
            f"{shown} does not exist: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a refusal, undecodable text, or an impossible name
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{shown} is not readable as YAML: {brief(why, str, MAX_TEXT)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{shown} is not a params file: it has no sections")
    if not earlier_names:
        refuse_renamed(values, shown)
    return values


def load_sections(kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """Return the sections that are fields of `kind`, and ignore others; UsageError as for all."""
    values = {name: section for name, section in read_params(path).items() if name in kind.model_fields}
    return validate(kind, values, str(path))


def load_section(name: str, kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """Return one section, as `load_sections`."""
    fields: Any = {name: (kind, ...)}
    alone = create_model("Params", **fields)
    section: Kind = getattr(load_sections(alone, path), name)
    return section
