"""The name of a training: the fields that differ from its nearest profile, and that profile."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.run_record import flatten_fields

if TYPE_CHECKING:
    from diffusion.config import Config

PROFILES = Path("profiles")
SECTIONS = ("data", "model", "process", "train")  # the sections of params.yaml that decide a training
MAX_LENGTH = 60  # characters


def training_name(config: "Config", profiles: Path = PROFILES) -> str:
    """Return a name such as `lr0.001-channels64-digits`: differing fields and a profile of the data set.

    MLflow shows the beginning of a long name. Of several profiles choose the one with the fewest differences;
    without any use the data set's name.
    """
    values = _training_fields(config)
    known = {path.stem: found for path in sorted(profiles.glob("*.yaml")) if (found := _profile(path))}
    same_data = {name: found for name, found in known.items() if found["data.name"] == values["data.name"]}
    if not same_data:
        return str(values["data.name"])
    name = min(same_data, key=lambda one: len(_differing(same_data[one], values)))
    fields = _differing(same_data[name], values)
    return _joined(name, [f"{_label(field)}{_short(values.get(field))}" for field in fields])


def _profile(path: Path) -> dict[str, Any] | None:
    """Return the fields of a profile that decide a training; None if the file is not a profile."""
    from diffusion.config import load

    try:
        return _training_fields(load(path))
    except DiffctlError:
        return None


def _training_fields(config: "Config") -> dict[str, Any]:
    """Return the fields that decide a training, without paths, logging intervals and hardware."""
    from diffusion.train.plan import HARDWARE_FIELDS, OBSERVATION_FIELDS

    excluded = {"data.path", *(f"train.{name}" for name in OBSERVATION_FIELDS | HARDWARE_FIELDS)}
    values = flatten_fields(config.model_dump(mode="json", include=set(SECTIONS)))
    return {name: value for name, value in values.items() if name not in excluded}


def _differing(profile: dict[str, Any], values: dict[str, Any]) -> list[str]:
    names = [*values, *(name for name in profile if name not in values)]
    return [name for name in names if profile.get(name) != values.get(name)]


def _label(field: str) -> str:
    """Return the last part of a field's name; the rate of a schedule has the schedule's name."""
    return field.removesuffix(".rate").rpartition(".")[2]


def _short(value: Any) -> str:
    """Return a value as a part of a name: lists joined by dots, `+` for True, `-` for False and None."""
    if isinstance(value, bool) or value is None:
        return "+" if value else "-"
    if isinstance(value, list | tuple):
        return ".".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(name: str, parts: list[str]) -> str:
    """Return as many parts as fit, then the name; `+3` counts three more."""
    for count in range(len(parts), -1, -1):
        left = [f"+{len(parts) - count}"] if count < len(parts) else []
        title = "-".join([*parts[:count], *left, name])
        if len(title) <= MAX_LENGTH:
            return title
    return name[:MAX_LENGTH]
