"""What stands on the command line itself, so that an option that would do nothing is refused."""

from collections.abc import Sequence

import typer

LONGEST = 4096  # characters of an argument, as of a path; a list may have more


def flags_given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """The flags of those of the named parameters that were given, defaults left out."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [flags[name] for name in names if _is_given(context, name)]


def refuse_idle(context: typer.Context, name: str, idle: bool, why: str) -> None:
    """UsageError when a parameter was given that would do nothing; `why` goes on after those words."""
    from diffusion.system.errors import UsageError

    if idle and (flags := flags_given(context, [name])):
        raise UsageError(f"{flags[0]} does nothing {why}: leave it out")


def refuse_long(arguments: Sequence[str]) -> None:
    """UsageError when one of a command line's arguments is longer than any that means something."""
    from diffusion.system.errors import UsageError

    for argument in arguments:
        if len(argument) > LONGEST and "," not in argument:
            begins = argument[:20].encode("utf-8", "backslashreplace").decode()
            raise UsageError(
                f"the argument {begins!r}… has {len(argument):,} characters: give {LONGEST:,} at most"
            )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
