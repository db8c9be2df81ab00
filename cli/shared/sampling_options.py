"""Command-line options of the declared sampling options.

They are made when their command is used, so that `diffctl --help` does not load the declarations.
"""

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from cli.shared.command import SAMPLING_OPTIONS as META
from diffusion.system.errors import UsageError

if TYPE_CHECKING:
    from diffusion.protocol.options import SamplingOption


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
            {one.name: _option(one) for one in options if one.option.cli and one.name not in self.without}
        )

    def invoke(self, ctx: Any) -> Any:
        """Call the function; the declared options are in the context."""
        given = {one.name: ctx.params.pop(one.name) for one in self._declared or ()}
        ctx.meta[META] = {
            name: value.value if isinstance(value, Enum) else value for name, value in given.items()
        }
        return super().invoke(ctx)


class AxesCommand(SamplingCommand):
    """A command with an option for each axis of a sweep, each a list of values as text."""

    def declared(self) -> list[Any]:
        """Return a parameter for each axis."""
        from diffusion.protocol.settings import AXES, OPTIONS

        return _parameters({name: _axis(OPTIONS[name]) for name in AXES})


def refuse_idle_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a given option without effect next to the others; settings check steps and eta."""
    from diffusion.protocol.settings import SAMPLING_OPTIONS

    def value_of(name: str) -> Any:
        value = options.get(name)
        return SAMPLING_OPTIONS[name].default if value is None else value

    for name, value in options.items():
        option = SAMPLING_OPTIONS[name]
        if value is None or option.option.axis == "required":
            continue
        if why := option.idle_reason(value_of, flag):
            raise UsageError(f"{flag(name)} does nothing {why}: leave it out")


def flag(name: str) -> str:
    """Return the flag of an option, such as --guidance-interval."""
    return f"--{name.replace('_', '-')}"


def _option(option: "SamplingOption") -> Any:
    """Return the annotated type of an option's parameter."""
    declared, kind = option.option, option.plain_type
    default = f" [default: {option.default}]" if option.default not in (None, "") else ""
    more: dict[str, Any] = {}
    if declared.choices:
        kind = option.enum()
    elif declared.write is not None:
        kind, more = str, {"metavar": declared.metavar}
    elif kind is not bool:
        more = {"min": option.bound(lower=True), "max": option.bound(lower=False)}
    return Annotated[kind | None, typer.Option(help=declared.help + default, **more)]


def _axis(option: "SamplingOption") -> Any:
    """Return the annotated type of an axis' parameter."""
    text = f"{option.option.help} [default: params.yaml's]"
    return Annotated[str | None, typer.Option(help=text, metavar=f"{option.option.metavar or 'A'},…")]


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
