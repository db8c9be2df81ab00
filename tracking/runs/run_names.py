"""What a training is called: the profile that it is nearest to, and what differs from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.system.errors import DiffctlError
from diffusion.train.config_diff import flat

if TYPE_CHECKING:
    from diffusion.config import Config

PROFILES = Path("profiles")
SECTIONS = ("data", "model", "process", "train")  # what decides a training
MAX_LENGTH = 60  # characters


def training_name(config: "Config", profiles: Path = PROFILES) -> str:
    """Such as `digits-lr0.001-channels64`: a profile of this data set and the fields that are not as there.

    Of several profiles the one that the fewest fields differ from; the data set alone where there is none.
    """
    values = _deciding(config)
    known = {path.stem: found for path in sorted(profiles.glob("*.yaml")) if (found := _profile(path))}
    same_data = {name: found for name, found in known.items() if found["data.name"] == values["data.name"]}
    if not same_data:
        return str(values["data.name"])
    name = min(same_data, key=lambda one: len(_differing(same_data[one], values)))
    fields = _differing(same_data[name], values)
    return _joined(name, [f"{_label(field)}{_short(values.get(field))}" for field in fields])


def _profile(path: Path) -> dict[str, Any] | None:
    """The deciding fields of a profile; None of a file that is none."""
    from diffusion.config import load

    try:
        return _deciding(load(path))
    except DiffctlError:
        return None


def _deciding(config: "Config") -> dict[str, Any]:
    """What decides a training, by name; not where its data lies, when it is looked at, and where it runs."""
    from diffusion.train.plan import HARDWARE_FIELDS, OBSERVATION_FIELDS

    aside = {"data.path", *(f"train.{name}" for name in OBSERVATION_FIELDS | HARDWARE_FIELDS)}
    values = flat(config.model_dump(mode="json", include=set(SECTIONS)))
    return {name: value for name, value in values.items() if name not in aside}


def _differing(profile: dict[str, Any], values: dict[str, Any]) -> list[str]:
    names = [*values, *(name for name in profile if name not in values)]
    return [name for name in names if profile.get(name) != values.get(name)]


def _label(field: str) -> str:
    """The last part of a field's name; the rate of a course is called as the course."""
    return field.removesuffix(".rate").rpartition(".")[2]


def _short(value: Any) -> str:
    """As a part of a name: a list's values joined by dots, `-` for nothing and for no."""
    if isinstance(value, bool) or value is None:
        return "+" if value else "-"
    if isinstance(value, list | tuple):
        return ".".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(name: str, parts: list[str]) -> str:
    """The name with as many of the parts as there is room for; `+3` stands for three more."""
    for count in range(len(parts), -1, -1):
        left = len(parts) - count
        title = "-".join([name, *parts[:count], *([f"+{left}"] if left else [])])
        if len(title) <= MAX_LENGTH:
            return title
    return name[:MAX_LENGTH]
