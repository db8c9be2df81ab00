"""`diffctl schema`: what params.yaml may hold, for editors."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.first_word import begin
from cli.shared.outputs import file_option


def schema(
    out: Annotated[
        Path | None, file_option("--out", "-o", help="FILE.json. [default: standard output]")
    ] = None,
) -> None:
    """Print the JSON schema of params.yaml, for editors to complete its keys and check its values."""
    begin("collecting what params.yaml may hold")
    from cli.shared.outputs import writer_of
    from diffusion.check.params_schema import schema_text
    from diffusion.system.output_paths import write_output_text

    if out is None:
        return typer.echo(schema_text(), nl=False)
    writer_of(out, {".json": write_output_text})(out, schema_text())
    typer.echo(f"the schema of params.yaml: {out}")
