"""`diffctl run`: the pipeline, supervised."""

from typing import Annotated

import typer


def run(
    push: Annotated[bool, typer.Option("--push", help="Send what was made to the DVC remote.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and sample from scratch; saved states are discarded.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with the training although its code has changed.")
    ] = False,
) -> None:
    """Bring everything up to date: data, model, samples, scores, report and registry.

    Only what is stale is made. Ctrl-C saves; the same command goes on.
    """
    typer.echo("==> starting; Ctrl-C saves what there is, and the same command goes on")
    from cli.actions import pipeline_run

    pipeline_run.run_stages(push, fresh, keep)
