"""The reference of the command line, from each command's `--help`."""

from collections.abc import Iterator
from typing import Any

import typer

from docs.site.tables import literal, table

HEAD = """# Command line

The `--help` of each command. Every command exits with one of [these
codes](../operations.md#exit-codes). If it fails, it prints one sentence.

"""


def text() -> str:
    """Return the page."""
    from cli.main import app

    return HEAD + "\n".join(_section(*found) for found in commands(typer.main.get_command(app), "diffctl"))


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield all commands that are not hidden with their full names, groups before their commands."""
    if not command.hidden:
        yield name, command
        for part, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, f"{name} {part}")


def _section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    records = [
        (kind, record)
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and "--help" not in parameter.opts
        for kind in [parameter.param_type_name]
    ]
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {name}\n", f"    {name} {usage}\n", (command.help or "").replace("\b\n", "") + "\n"]
    for kind, title in (("argument", "Argument"), ("option", "Option")):
        if rows := [(literal(record[0]), _plain(record[1])) for own, record in records if own == kind]:
            lines.append(table((title, ""), rows))
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Escape help text for Markdown, except code."""
    return text.replace("[", "\\[").replace("*", "\\*").replace("<", "&lt;")
