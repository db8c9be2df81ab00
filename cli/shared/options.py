"""Options that several commands have, and checks of options that need no heavy import.

Those of declared sampling options are made when their command is used: `diffctl --help` does not load them.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand
from typer.main import get_command

from cli.shared.command import SAMPLING, Options, option
from diffusion.layout import MODEL
from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError

if TYPE_CHECKING:
    from diffusion.protocol.options import Option

PROFILES = Path("profiles")

# Choices from the names in registries.
Spacing = StrEnum("Spacing", {name: name for name in SPACINGS})  # type: ignore[misc]
Extractor = StrEnum("Extractor", {name: name for name in EXTRACTORS})  # type: ignore[misc]
Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]


def profile_names() -> list[str]:
    """Return the names in profiles/, also for shell completion."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


StorePath = Annotated[
    Path | None,
    typer.Option("--images", help="The image store that numbers refer to. [default: data/prepared/test]"),
]


class JsonOptions(Options):
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


class ModelOptions(Options):
    """The options that select a model."""

    model: Path | None = option(f"A model file. [default: {MODEL}]")
    run_id: str | None = option("The model of this MLflow run.")
    champion: bool = option("The registered champion for the data of params.yaml.")

    @property
    def names_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None or self.run_id is not None or self.champion

    def check(self) -> None:
        """Raise UsageError if two models are named."""
        if sum((self.model is not None, self.run_id is not None, self.champion)) > 1:
            raise UsageError("--model, --run-id and --champion exclude each other: give one of them")


class ProfileOptions(ModelOptions):
    """The options that select a model, or else a configuration."""

    profile: str | None = option(
        "A name in profiles/, or a file. [default: params.yaml]", autocompletion=profile_names
    )

    def check(self) -> None:
        """Raise UsageError if two models, or a model and a profile, are named."""
        super().check()
        if self.names_model and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")


class SamplingCommand(TyperCommand):
    """A command with an option for each declared sampling option, except those in `without`."""

    without: tuple[str, ...] = ()

    def __init__(self, *arguments: Any, **values: Any) -> None:
        self._declared: list[Any] | None = None
        super().__init__(*arguments, **values)

    @property
    def params(self) -> list[Any]:
        """The function's own parameters, then the declared options."""
        if self._declared is None:
            self._declared = self.declared()
            self._params += self._declared
        return self._params

    @params.setter
    def params(self, own: list[Any]) -> None:
        self._params = own

    def declared(self) -> list[Any]:
        """Return a parameter for each option."""
        from diffusion.protocol.settings import SAMPLING_OPTIONS

        options = SAMPLING_OPTIONS.values()
        return _parameters(
            {one.name: _option(one) for one in options if one.cli and one.name not in self.without}
        )

    def invoke(self, ctx: Any) -> Any:
        """Call the function; the declared options are in the context."""
        ctx.meta[SAMPLING] = {one.name: ctx.params.pop(one.name) for one in self._declared or ()}
        return super().invoke(ctx)


class AxesCommand(SamplingCommand):
    """A command with an option for each axis of a sweep, each a list of values as text."""

    def declared(self) -> list[Any]:
        """Return a parameter for each axis."""
        from diffusion.protocol.settings import AXES, OPTIONS

        return _parameters({name: _axis(OPTIONS[name]) for name in AXES})


def _option(option: "Option") -> Any:
    """Return the annotated type of an option's parameter."""
    kind: Any = option.plain_type
    default = f" [default: {option.default}]" if option.default not in (None, "") else ""
    more: dict[str, Any] = {}
    if option.choices:
        kind = Literal[*option.choices]
    elif option.write is not None:
        kind, more = str, {"metavar": option.metavar}
    elif kind is not bool:
        more = {"min": option.bound(lower=True), "max": option.bound(lower=False)}
    return Annotated[kind | None, typer.Option(help=option.help + default, **more)]


def _axis(option: "Option") -> Any:
    """Return the annotated type of an axis' parameter."""
    text = f"{option.help} [default: params.yaml's]"
    return Annotated[str | None, typer.Option(help=text, metavar=f"{option.metavar or 'A'},…")]


def _parameters(annotations: Mapping[str, Any]) -> list[Any]:
    """Return Typer's parameters of these annotated types, each with the default None."""

    def function(**options: Any) -> None: ...

    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in annotations.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [one for one in get_command(app).params if one.name in annotations]
