"""How a figure reaches a person: as a file, as text in the terminal, or as JSON."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.first_word import begin
from cli.shared.outputs import file_option, writer_of

if TYPE_CHECKING:
    from diffusion.show.figure import FigureData

WIDEST, NARROWEST = 120, 72  # characters of a line, whatever the terminal has; a pipe has 80

Out = Annotated[
    Path | None, file_option("--out", "-o", help="FILE.svg or .png. [default: text in the terminal]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the figure is drawn from as JSON.")]


def begin_figure(out: Path | None, as_json: bool) -> None:
    """Say that a figure is computed, before the work; UsageError where it cannot be written there."""
    if out is not None:
        from diffusion.show.figure import WRITERS

        writer_of(out, dict.fromkeys(WRITERS, _write))
    begin("computing the figure", as_json)


def tell(shown: "FigureData", out: Path | None, as_json: bool) -> None:
    """Write the figure to its file, if one is named, and print what was asked for."""
    if out is not None:
        _write(out, shown)
    if as_json:
        values = shown.values() if out is None else {"out": str(out), "title": shown.title}
        typer.echo(json.dumps(values, ensure_ascii=False))
    elif out is not None:
        typer.echo(f"{shown.title}: {out}")
    else:
        columns = shutil.get_terminal_size((80, 24)).columns
        typer.echo("\n".join(shown.lines(min(WIDEST, max(NARROWEST, columns)))).rstrip())


def _write(out: Path, shown: "FigureData") -> None:
    from diffusion.show.figure import WRITERS
    from diffusion.system.output_paths import write_output

    data = WRITERS[out.suffix](shown)
    write_output(out, lambda file: file.write(data))
