"""Commands as dataclasses: a field for each option, and a body that is imported when the command runs.

Each option is named once, and `diffctl --help` imports nothing heavy.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_type_hints

import typer
from typer.core import TyperCommand

from diffusion.layout import refuse_subfolder
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output
from diffusion.system.references import load_reference

SAMPLING_OPTIONS = "sampling options"  # key of their values in a context
MAKE = "make"  # key of the function that makes a field's parameter for Typer, in its metadata
SUFFIXES = "suffixes"  # key of an output file's suffixes, there too


def option(help: str, *flags: str, default: Any = MISSING, **settings: Any) -> Any:
    """Declare an option with more settings of Typer; its flag is its name, for a switch without `--no-…`."""
    return field(default=default, metadata={MAKE: partial(typer.Option, *flags, help=help, **settings)})


def argument(help: str | None = None, *, default: Any = MISSING, **settings: Any) -> Any:
    """Declare an argument with more settings of Typer."""
    return field(default=default, metadata={MAKE: partial(typer.Argument, help=help, **settings)})


def file_option(help: str, *flags: str, default: Any = MISSING) -> Any:
    """Declare an option that names an output file."""
    return option(help, *flags, default=default, parser=output_file, metavar="FILE")


def out_option(help: str, *suffixes: str, default: Any = MISSING) -> Any:
    """Declare the option --out, an output file with one of these suffixes, checked before the work."""
    declared = file_option(help, "--out", "-o", default=default)
    declared.metadata = {**declared.metadata, SUFFIXES: suffixes}
    return declared


def check_output_suffix(out: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError if the file has another suffix or cannot be written."""
    if out.suffix not in suffixes:
        raise UsageError(f"--out {printable(out)}: give a file that ends in {' or '.join(suffixes)}")
    check_output(out, "--out")


def output_file(given: str | Path) -> Path:
    """Return the path; UsageError if it cannot name a file."""
    text = str(given)  # a default is a path already
    if text == "-":
        raise UsageError("- is no file name: standard output is /dev/stdout, a file of that name ./-")
    if not text or text.endswith("/"):
        raise UsageError(f"{printable(text)!r} is no file name: give one")
    return Path(text)


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
        for one in fields(self):
            out, suffixes = getattr(self, one.name), one.metadata.get(SUFFIXES)
            if out is not None and suffixes:
                check_output_suffix(out, suffixes)
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
    """Print what the command does, on a terminal only; `silent` for scripts and child processes."""
    if doing and not silent and sys.stderr.isatty():
        with contextlib.suppress(OSError):  # it was closed
            print(f"{doing} …", file=sys.stderr, flush=True)


Command = TypeVar("Command", bound=Options)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, argument, file_option, out_option))
def shared_options(options: type[Command]) -> type[Command]:
    """Declare options that several commands have."""
    return dataclass(kw_only=True)(options)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, argument, file_option, out_option))
def command(
    body: str, message: str = "", kind: type[TyperCommand] = TyperCommand, *, at_root: bool = False
) -> Callable[[type[Command]], type[Command]]:
    """Declare a command: its body as "module:function", and the message before that is imported.

    With `at_root` it is refused in a subfolder of a project, where it would use other databases and runs.
    """

    def declare(options: type[Command]) -> type[Command]:
        options.body, options.message, options.kind = body, message, kind
        options.at_root = at_root
        return shared_options(options)

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
                annotation=_annotation(one, hints[one.name]),
            )
            for one in sorted(fields(options), key=lambda one: one.name not in own)
            if one.init
        ),
    ]


def _annotation(one: Field[Any], hint: Any) -> Any:
    """Return the annotation of a field for Typer."""
    make = one.metadata.get(MAKE)
    if make is None:
        return hint
    is_switch = hint is bool and not make.args
    return Annotated[hint, make(*[f"--{one.name.replace('_', '-')}"] * is_switch)]


def _at_home(value: Any) -> Any:
    """Return a path with `~` replaced, which a shell leaves as it is in quotes and in `--out=~/x`."""
    return type(value)(os.path.expanduser(value)) if isinstance(value, Path) else value


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
