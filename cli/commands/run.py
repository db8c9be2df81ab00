"""`diffctl run`: the pipeline, supervised."""

from typing import Annotated

import typer


def run(
    push: Annotated[bool, typer.Option("--push", help="Push the results to the DVC remote.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and sample from scratch, without saved states.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Resume the training although its code has changed.")
    ] = False,
) -> None:
    """Run the pipeline: data, model, samples, scores, report, registry.

    Only stale stages run. Ctrl-C saves the training; the same command resumes it.
    """
    typer.echo("==> starting; Ctrl-C saves the training, and the same command resumes it")
    from cli.actions import pipeline_run

    pipeline_run.run_stages(push, fresh, keep)
