"""Options that several commands have, and checks of options that need no heavy import."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.shared.command import CommandOptions, option, option_table
from diffusion.layout import MODEL, PROFILES
from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.option_tables import ALL_OPTIONS, AXES, SAMPLING_OPTIONS
from diffusion.protocol.options import Option
from diffusion.protocol.sampling_options import REGISTRIES_WITH_OPTIONS
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError
from diffusion.system.section import own_options

OWN_OPTIONS = {
    f"{name}_options" for name in REGISTRIES_WITH_OPTIONS
}  # of a sampler, spacing or rule, as KEY=VALUE

# Choices from the names in registries.
Extractor = StrEnum("Extractor", {name: name for name in EXTRACTORS})  # type: ignore[misc]
Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]


def profile_names() -> list[str]:
    """Return the names of the profiles, also for shell completion."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


StorePath = Annotated[
    Path | None,
    typer.Option("--images", help="The image store that numbers refer to. [default: data/prepared/test]"),
]


class JsonOptions(CommandOptions):
    """The option of a command that can print JSON."""

    as_json: bool = option("Print the result as JSON.", "--json")

    def answer(self, values: object, text: str | Callable[[], object]) -> None:
        """Print the values as JSON with --json, else the text; `text` may be a function that prints."""
        if self.as_json:
            typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        elif callable(text):
            text()
        else:
            typer.echo(text)


class RayOptions(CommandOptions):
    """The options of a command that runs trials."""

    ray: bool = option("Run trials in parallel on Ray, one per device.")
    max_parallel: int | None = option("With --ray: trials at once. [default: all that fit]", min=1, max=4096)
    cpus: int | None = option("With --ray: cores per trial. [default: 1]", min=1, max=4096)

    def __post_init__(self) -> None:
        if not self.ray and any((self.max_parallel, self.cpus)):
            raise UsageError("--max-parallel and --cpus need --ray: add it, or leave them out")


class ModelSourceOptions(CommandOptions):
    """The options that select a model."""

    model: Path | None = option(f"A model file. [default: {MODEL}]")
    run_id: str | None = option("The model of this MLflow run.")
    champion: bool = option("The registered champion for the data of params.yaml.")
    force: bool = option("Use a champion that was trained on other images than data/prepared.")

    @property
    def names_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None or self.run_id is not None or self.champion

    def __post_init__(self) -> None:
        if sum((self.model is not None, self.run_id is not None, self.champion)) > 1:
            raise UsageError("--model, --run-id and --champion exclude each other: give one of them")


class ProfileOptions(ModelSourceOptions):
    """The options that select a model, or else a configuration."""

    profile: str | None = option(
        "A profile of `diffctl use`, or a file. [default: params.yaml]",
        autocompletion=profile_names,
        paths=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names_model and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")


def sampling_options(names: Iterable[str] = SAMPLING_OPTIONS) -> Any:
    """Declare these sampling options of the command line as a dict of their values."""
    options = SAMPLING_OPTIONS.values()
    types = {one.name: _option(one) for one in options if one.name in names}
    return option_table(types, paths=["guide", "base"])


def axis_options() -> Any:
    """Declare an option for each axis of a sweep as a dict of lists of values as text.

    Options of a sampler or a spacing are not axes: they are of all cells.
    """
    own = {name: _option(option) for name, option in SAMPLING_OPTIONS.items() if name in OWN_OPTIONS}
    return option_table({name: _axis(ALL_OPTIONS[name]) for name in AXES} | own)


def sample_flags(settings: SampleSettings, usual: SampleSettings, files: Mapping[str, Any]) -> str:
    """Return the options of `diffctl sample` for settings other than `usual`; `files` replace names of files.

    Those of a sampler, a spacing or a guidance rule are left out where they have their default.
    """
    words = []
    for name, one in SAMPLING_OPTIONS.items():
        value = files.get(name, getattr(settings, name))
        if name in OWN_OPTIONS:
            field = name.removesuffix("_options")
            own = own_options(REGISTRIES_WITH_OPTIONS[field][settings.entry(field)], value, name)
            words += [word for k, v in own.items() for word in (flag_of(name), f"{k}={json.dumps(v)}")]
        elif value != getattr(usual, name):
            words += [off_flag_of(name)] if value is False else [flag_of(name), str(one.text(value))]
    return "".join(f" {shlex.quote(word)}" for word in words)


def flag_of(name: str) -> str:
    """Return the flag of a sampling option."""
    return f"--{name.replace('_options', '_option').replace('_', '-')}"


def off_flag_of(name: str) -> str:
    """Return the flag that turns a sampling option off."""
    return f"--no-{flag_of(name).removeprefix('--')}"


def _option(option: Option) -> Any:
    """Return the annotated type of an option's parameter."""
    kind: Any = option.plain_type
    default = f" [default: {option.default}]" if option.default not in (None, "") else ""
    more: dict[str, Any] = {}
    if option.name in OWN_OPTIONS:
        kind, default, more = list[str], "", {"metavar": "KEY=VALUE"}
    elif option.choices:
        kind = Literal[*option.choices]
    elif option.write is not None:
        kind, more = str, {"metavar": option.metavar}
    elif kind is not bool:
        more = {"min": option.bound(lower=True), "max": option.bound(lower=False)}
    flag = flag_of(option.name) + f"/{off_flag_of(option.name)}" * (kind is bool)
    return Annotated[kind | None, typer.Option(flag, help=option.help + default, **more)]


def _axis(option: Option) -> Any:
    """Return the annotated type of an axis' parameter."""
    text = f"{option.help} [default: params.yaml's]"
    return Annotated[str | None, typer.Option(help=text, metavar=f"{option.metavar or 'A'},…")]
