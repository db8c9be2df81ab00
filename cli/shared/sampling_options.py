"""Command-line options of the declared sampling options.

They are made when their command is used, so that `diffctl --help` does not load the declarations.
"""

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main

from diffusion.system.errors import UsageError

if TYPE_CHECKING:
    from diffusion.protocol.options import SamplingOption

META = "sampling options"


class SamplingCommand(typer.core.TyperCommand):
    """A command with an option for each declared sampling option, except those in `without`.

    Its function reads them by `given_options`.
    """

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
        names = [parameter.name for parameter in self._declared or ()]
        ctx.meta[META] = {name: _plain(ctx.params.pop(name)) for name in names}
        return super().invoke(ctx)


class ReverseCommand(SamplingCommand):
    """A command with the sampling options of a single trajectory."""

    without = ("timesteps",)


class AxesCommand(SamplingCommand):
    """A command with an option for each axis of a sweep, each a list of values as text."""

    def declared(self) -> list[Any]:
        """Return a parameter for each axis."""
        from diffusion.protocol.settings import AXES, OPTIONS

        return _parameters({name: _axis(OPTIONS[name]) for name in AXES})


def given_options(context: typer.Context) -> dict[str, Any]:
    """Return the declared options of the command line by name, None where one is not given."""
    options: dict[str, Any] = context.meta[META]
    return options


def refuse_idle_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that is given and has no effect next to the others.

    The settings themselves check steps and eta.
    """
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
    default = f" [default: {option.default}]" if option.default not in (None, "") else ""
    text = option.option.help + default
    if option.option.choices:
        return Annotated[option.enum() | None, typer.Option(flag(option.name), help=text)]
    if option.option.write is not None:
        metavar = option.option.metavar
        return Annotated[str | None, typer.Option(flag(option.name), help=text, metavar=metavar)]
    if option.plain_type is bool:
        flags = f"{flag(option.name)}/--no-{flag(option.name)[2:]}"
        return Annotated[bool | None, typer.Option(flags, help=text)]
    least, most = option.bound(lower=True), option.bound(lower=False)
    return Annotated[
        option.plain_type | None, typer.Option(flag(option.name), help=text, min=least, max=most)
    ]


def _axis(option: "SamplingOption") -> Any:
    """Return the annotated type of an axis' parameter."""
    value = option.option.metavar or "A"
    text = f"{option.option.help} [default: params.yaml's]"
    return Annotated[str | None, typer.Option(flag(option.name), help=text, metavar=f"{value},…")]


def _parameters(annotations: Mapping[str, Any]) -> list[Any]:
    """Return Typer's parameters of these annotated types, each with the default None."""

    def function(**options: Any) -> None: ...

    keyword = inspect.Parameter.KEYWORD_ONLY
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, keyword, default=None, annotation=kind)
            for name, kind in annotations.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [one for one in typer.main.get_command(app).params if one.name in annotations]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
