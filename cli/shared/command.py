"""Commands as dataclasses: a field for each option, and a body that is imported when the command runs.

Each option is named once, and `diffctl --help` imports nothing heavy.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_type_hints

import typer
from typer.core import TyperCommand

from diffusion.system.errors import UsageError
from diffusion.system.references import load_reference
from diffusion.system.repository import refuse_subfolder

SAMPLING_OPTIONS = "sampling options"  # key of their values in a context


@dataclass(kw_only=True)
class Options:
    """Base class of a command's options. Its docstring is the help text of the command."""

    body: ClassVar[str]
    message: ClassVar[str]
    kind: ClassVar[type[TyperCommand]] = TyperCommand
    at_root: ClassVar[bool] = False
    flags_given: Mapping[str, str] = field(default_factory=dict, init=False)
    """The flags on the command line, by field."""
    sampling: dict[str, Any] = field(default_factory=dict, init=False)
    """The declared sampling options by name, None where one is not given."""

    def check(self) -> None:
        """Raise UsageError for options that contradict each other, before slow imports."""

    def run(self) -> None:
        """Check the options, print what the command does, then import and call its body."""
        self.check()
        if self.at_root:
            refuse_subfolder()
        begin(self.message, silent=getattr(self, "as_json", False))
        body = load_reference(self.body)
        body(self) if any(one.init for one in fields(self)) else body()

    def refuse_idle(self, name: str, idle: bool, why: str) -> None:
        """Raise UsageError if an option is given and has no effect; `why` ends the sentence."""
        if idle and name in self.flags_given:
            raise UsageError(f"{self.flags_given[name]} does nothing {why}: leave it out")


def begin(doing: str, silent: bool = False) -> None:
    """Print what the command does, if stderr is a terminal; `silent` for scripts and child processes.

    Elsewhere stderr contains failures only.
    """
    if doing and not silent and sys.stderr.isatty():
        with contextlib.suppress(OSError):  # it was closed
            print(f"{doing} …", file=sys.stderr, flush=True)


Command = TypeVar("Command", bound=Options)


@dataclass_transform(kw_only_default=True)
def command(
    body: str, message: str = "", kind: type[TyperCommand] = TyperCommand, *, at_root: bool = False
) -> Callable[[type[Command]], type[Command]]:
    """Declare a command: its body as "module:function", and the message before that is imported.

    With `at_root` it is refused in a subfolder of a project, where it would use other databases and runs.
    """

    def declare(options: type[Command]) -> type[Command]:
        options.body, options.message, options.kind = body, message, kind
        options.at_root = at_root
        return dataclass(kw_only=True)(options)

    return declare


def add_command(app: typer.Typer, options: type[Options], name: str | None = None, **settings: Any) -> None:
    """Add a command to the app, by default under the name of its class, with more settings of Typer."""
    name = name or options.__name__.lower()
    app.command(name, cls=options.kind, **settings)(callback_of(options))


def callback_of(options: type[Options]) -> Callable[..., None]:
    """Return the function of a command or a group for Typer; before a subcommand it does nothing."""

    def run(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is not None:
            return
        made = options(**{name: _at_home(value) for name, value in values.items()})
        given = (one for one in context.command.params if _is_given(context, one.name or ""))
        made.flags_given = {one.name or "": one.opts[0] for one in given}
        made.sampling = context.meta.get(SAMPLING_OPTIONS, {})
        made.run()

    run.__signature__ = inspect.Signature(_parameters(options))  # type: ignore[attr-defined]
    run.__doc__ = options.__doc__
    return run


def _parameters(options: type[Options]) -> list[inspect.Parameter]:
    """Return the parameters of a command: its context, its own options, then inherited ones."""
    keyword, own = inspect.Parameter.KEYWORD_ONLY, inspect.get_annotations(options)
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(
            inspect.Parameter(
                one.name,
                keyword,
                default=inspect.Parameter.empty if one.default is MISSING else one.default,
                annotation=hints[one.name],
            )
            for one in sorted(fields(options), key=lambda one: one.name not in own)
            if one.init
        ),
    ]


def _at_home(value: Any) -> Any:
    """Return a path with `~` replaced, which a shell leaves as it is in quotes and in `--out=~/x`."""
    return type(value)(os.path.expanduser(value)) if isinstance(value, Path) else value


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
