"""Commands as dataclasses: a field for each option, and a body that is imported when the command runs.

Each option is named once. A body is a text "module:function", so that `diffctl --help` loads nothing heavy.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from diffusion.layout import check_output_file
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output_folder
from diffusion.system.registry import load_reference

# Keys in a field's metadata: the parameter for Typer, whether a text may be a path, suffixes and kind of an
# output, a table of options.
MAKE, PATHS, SUFFIXES, KIND, TABLE = "make", "paths", "suffixes", "kind", "table"
MAX_SUMMARY = 200  # characters of a command in the help of its group


def option(help: str, *flags: str, default: Any = MISSING, paths: bool = False, **settings: Any) -> Any:
    """Declare an option with settings of Typer. By default its flag is its name; a switch has no `--no-…`.

    With `paths` a text that is the path of an existing file or folder is used as a path.
    """
    make = partial(typer.Option, *flags, help=help, **settings)
    return field(default=default, metadata={MAKE: make, PATHS: paths})


def argument(help: str | None = None, *, default: Any = MISSING, paths: bool = False, **settings: Any) -> Any:
    """Declare an argument with settings of Typer; `paths` as in `option`."""
    make = partial(typer.Argument, help=help, **settings)
    return field(default=default, metadata={MAKE: make, PATHS: paths})


def out_option(
    help: str, *suffixes: str, kind: str = "", flags: Sequence[str] = ("--out", "-o"), default: Any = MISSING
) -> Any:
    """Declare an output file with one of these suffixes, or with any one and this kind.

    The suffix "" allows a new folder.
    It is checked before the work. The command gets `--force`, to replace a file of another kind.
    """
    make = partial(typer.Option, *flags, help=help, metavar="FILE")
    return field(default=default, metadata={MAKE: make, SUFFIXES: suffixes, KIND: kind})


def option_table(types: Mapping[str, Any], paths: Sequence[str] = ()) -> Any:
    """Declare a dict of options that are None unless given, by their names and annotated types.

    The values of `paths` may be paths, as in `option`.
    """
    return field(default_factory=dict, metadata={TABLE: types, PATHS: paths})


@dataclass_transform(kw_only_default=True, field_specifiers=(option, argument, out_option, option_table))
@dataclass(kw_only=True)
class CommandOptions:
    """Base class of a command's options. Its docstring is the help text of the command.

    Without a default, a switch is off, and a value that may be None is None. Other options are required.
    `__post_init__` raises UsageError for options that contradict each other, before slow imports.
    """

    body: ClassVar[str]
    message: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if any(isinstance(one, Field) and KIND in one.metadata for one in vars(cls).values()):
            known = (getattr(base, "__dataclass_fields__", {}).get("force") for base in cls.__mro__[1:])
            also = "".join(f"{one.metadata[MAKE].keywords['help']} " for one in {*filter(None, known)})
            cls.__annotations__["force"] = bool
            cls.force = option(f"{also}Replace an output file of another kind.")  # type: ignore[attr-defined]
        for name, hint in inspect.get_annotations(cls).items():
            declared = cls.__dict__.get(name)
            if isinstance(declared, Field) and declared.default is MISSING:
                if hint is bool:
                    declared.default = False
                elif NoneType in get_args(hint):
                    declared.default = None
        dataclass(kw_only=True)(cls)

    def run(self) -> None:
        """Check the outputs, print what the command does, then load and call its body."""
        for one in fields(self):
            if SUFFIXES in one.metadata and (out := getattr(self, one.name)) is not None:
                flag, suffixes = one.metadata[MAKE].args[0], one.metadata[SUFFIXES]
                if suffixes and out.suffix not in suffixes:
                    ends = " or ".join(filter(None, suffixes))
                    raise UsageError(f"{flag} {printable(out)}: give a file that ends in {ends}")
                if suffixes and not out.suffix:
                    check_output_folder(out, flag)
                    continue
                kind = out.suffix if suffixes else one.metadata[KIND]
                check_output_file(out, flag, "" if getattr(self, "force", False) else kind)
        begin(self.message, silent=getattr(self, "as_json", False))
        load_reference(self.body)(self)


def begin(doing: str, silent: bool = False) -> None:
    """Print what the command does, on a terminal only; `silent` for scripts and child processes."""
    if doing and not silent and sys.stderr.isatty():
        with contextlib.suppress(OSError):  # it was closed
            print(f"{doing} …", file=sys.stderr, flush=True)


Command = TypeVar("Command", bound=CommandOptions)


def command(
    app: typer.Typer,
    body: str,
    message: str = "",
    *,
    name: str | None = None,
    hidden: bool = False,
) -> Callable[[type[Command]], type[Command]]:
    """Add a command to the app, by default under the name of its class; an empty name is the group itself.

    `body` is the "module:function" that receives the options, and `message` is printed before it is loaded.
    """

    def declare(options: type[Command]) -> type[Command]:
        options.body, options.message = body, message
        called = options.__name__.lower() if name is None else name
        add = app.command(called, hidden=hidden) if called else app.callback()
        add(_callback_of(options))
        return options

    return declare


class CommandGroup(TyperGroup):
    """A group of commands. Its help lists them by panel, without rich, which takes longer to import."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order of its first command; summaries are not cut."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                panels.setdefault(panel, []).append((name, command.get_short_help_str(MAX_SUMMARY)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def group(parent: typer.Typer, name: str, help: str) -> typer.Typer:
    """Add a group of commands, which stays a group with a single command."""
    app = typer.Typer(name=name, cls=CommandGroup, help=help, no_args_is_help=True)
    app.callback()(lambda: None)
    parent.add_typer(app)
    return app


def _callback_of(options: type[CommandOptions]) -> Callable[..., None]:
    """Return the function of a command or a group for Typer; before a subcommand it does nothing."""

    def run(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is not None:
            return
        relative = partial(_user_path, folder=context.obj or Path.cwd())
        for one in fields(options):
            paths, source = one.metadata.get(PATHS) or (), context.get_parameter_source(one.name)
            if table := one.metadata.get(TABLE):
                own = {name: values.pop(name) for name in table}
                values[one.name] = {name: relative(own[name], texts=name in paths) for name in table}
            elif source is not None and source.name != "DEFAULT":
                values[one.name] = relative(values[one.name], texts=bool(paths))
        options(**values).run()

    run.__signature__ = inspect.Signature(_parameters(options))  # type: ignore[attr-defined]
    run.__doc__ = options.__doc__
    return run


def _user_path(value: Any, folder: Path, texts: bool) -> Any:
    """Return a path relative to `folder` as one relative to the working directory, or absolute.

    With `texts` a text is such a path if it names an existing file. Other values are returned as they are.
    """
    if isinstance(value, list):
        return [_user_path(each, folder, texts) for each in value]
    if not isinstance(value, Path) and not (texts and isinstance(value, str)):
        return value
    path = Path(value).expanduser()  # a shell leaves `~` as it is in quotes and in `--out=~/x`
    if folder != Path.cwd():
        path = folder / path
        if path.is_relative_to(Path.cwd()) and ".." not in path.parts:
            path = path.relative_to(Path.cwd())
    if isinstance(value, Path):
        return path
    return str(path) if os.path.exists(path) else value


def _parameters(options: type[CommandOptions]) -> list[inspect.Parameter]:
    """Return the parameters of a command: context, own and inherited options, tables."""
    keyword, own = inspect.Parameter.KEYWORD_ONLY, inspect.get_annotations(options)
    hints = get_type_hints(options, include_extras=True)
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for one in sorted(fields(options), key=lambda one: (TABLE in one.metadata, one.name not in own)):
        if table := one.metadata.get(TABLE):
            for name, kind in table.items():
                parameters.append(inspect.Parameter(name, keyword, default=None, annotation=kind))
            continue
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        annotation = hints[one.name]
        if make := one.metadata.get(MAKE):
            if make.func is typer.Argument:
                make = partial(make, metavar=make.keywords.get("metavar", one.name.upper()))
            is_switch = annotation is bool and not make.args
            annotation = Annotated[annotation, make(*[f"--{one.name.replace('_', '-')}"] * is_switch)]
        parameters.append(inspect.Parameter(one.name, keyword, default=default, annotation=annotation))
    return parameters
