"""params.yaml: all sections as plain values, or one section as its class."""

from pathlib import Path
from typing import Any

from pydantic import create_model

from diffusion.system.errors import UsageError
from diffusion.system.renamed import refuse_renamed
from diffusion.system.section import Kind, brief, validate
from diffusion.system.yaml_text import YamlRefusal, parse_yaml

PARAMS = "params.yaml"
MAX_TEXT = 300  # characters of a path or a reason
MAX_BYTES = 64 * 2**10  # of a params file; the profiles have two thousand


def read_params(path: Path | str = PARAMS, earlier_names: bool = False) -> dict[str, Any]:
    """Return the sections of a params file as plain values; UsageError if it is missing or unreadable.

    UsageError for keys of earlier versions too, unless `earlier_names` allows them.
    """
    path = Path(path)
    shown = brief(path, str, MAX_TEXT)
    text = _text(path, shown)
    try:
        values = parse_yaml(text)
    except YamlRefusal as refusal:
        raise UsageError(f"{shown} is not readable as YAML: {brief(refusal, str, MAX_TEXT)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{shown} is not a params file: it has no sections")
    if not earlier_names:
        refuse_renamed(values, shown)
    return values


def _text(path: Path, shown: str) -> str:
    """Return the content of a regular file of limited size."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{shown} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{shown} has more than {MAX_BYTES:,} bytes, too many for a params file")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{shown} does not exist: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8 text at byte {error.start + 1}") from None
    except (OSError, ValueError) as error:  # ValueError for a NUL or an unencodable character in the name
        why = error.strerror if isinstance(error, OSError) else "the name is not possible"
        raise UsageError(f"{shown} cannot be read ({why})") from None


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
