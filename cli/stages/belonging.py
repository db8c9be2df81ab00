"""What every stage does first: find its resumable work, and belong to the run that started it."""

import typer


def stage(context: typer.Context) -> None:
    """A stage of the pipeline, as dvc.yaml runs it."""
    from cli.stages.home import share_runs
    from flows.at_work import part_of_run

    share_runs()
    context.with_resource(part_of_run())  # while it lives no other run begins in this folder
