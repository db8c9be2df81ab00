"""What stands on the command line itself, so that an option that would do nothing is refused."""

from collections.abc import Sequence

import typer


def flags_given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """The flags of those of the named parameters that were given, defaults left out."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [flags[name] for name in names if _is_given(context, name)]


def refuse_idle(context: typer.Context, name: str, idle: bool, why: str) -> None:
    """UsageError when a parameter was given that would do nothing; `why` goes on after those words."""
    from diffusion.system.errors import UsageError

    if idle and (flags := flags_given(context, [name])):
        raise UsageError(f"{flags[0]} does nothing {why}: leave it out")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
