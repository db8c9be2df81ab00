"""Reading params.yaml: all of it as plain values, or one section as its own class."""

from pathlib import Path
from typing import Any

from pydantic import create_model

from diffusion.system.errors import UsageError
from diffusion.system.renamed import refuse_renamed
from diffusion.system.section import Kind, brief, validate
from diffusion.system.yaml_text import YamlRefusal, parse_yaml

PARAMS = "params.yaml"
MAX_SHOWN = 300  # characters of a path, or of what is wrong with a text
MAX_BYTES = 64 * 2**10  # of a params file; the profiles have two thousand


def read_params(path: Path | str = PARAMS) -> dict[str, Any]:
    """The sections of a params file as plain values; UsageError for a missing or unreadable one."""
    path = Path(path)
    shown = brief(path, str, MAX_SHOWN)
    text = _text(path, shown)
    try:
        values = parse_yaml(text)
    except YamlRefusal as refusal:
        raise UsageError(f"{shown} is not readable as YAML: {brief(refusal, str, MAX_SHOWN)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{shown} is no params file: it holds no sections")
    refuse_renamed(values, shown)
    return values


def _text(path: Path, shown: str) -> str:
    """What a regular file of sensible size holds."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{shown} is no regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{shown} has more than {MAX_BYTES:,} bytes, so it is no params file")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{shown} is not here: run this in the project's folder, or `diffctl use PROFILE` to start one"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8 text: byte {error.start + 1} is none of it") from None
    except (OSError, ValueError) as error:  # a NUL or no encoding in the name is a ValueError
        why = error.strerror if isinstance(error, OSError) else "no file can be called that"
        raise UsageError(f"{shown} cannot be read ({why})") from None


def load_sections(kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """The sections that are fields of `kind`, whatever the others hold; UsageError as loading all gives."""
    values = {name: section for name, section in read_params(path).items() if name in kind.model_fields}
    return validate(kind, values, str(path))


def load_section(name: str, kind: type[Kind], path: Path | str = PARAMS) -> Kind:
    """One section, as `load_sections`."""
    fields: Any = {name: (kind, ...)}
    alone = create_model("Params", **fields)
    section: Kind = getattr(load_sections(alone, path), name)
    return section
