"""What every stage does first: find its resumable work, and belong to the run that started it."""

import os

import typer

from cli.shared.first_word import begin

# Set by DVC, by `diffctl run` and by a training's first process, which have said what begins.
TELLERS = ("DVC_STAGE", "DIFFCTL_WORK", "RANK")


def stage(context: typer.Context) -> None:
    """A stage of the pipeline, as dvc.yaml runs it."""
    begin(
        f"preparing the stage {context.invoked_subcommand}", silent=not os.environ.keys().isdisjoint(TELLERS)
    )
    from cli.stages.home import share_runs
    from flows.run_lock import join_run

    share_runs()
    context.with_resource(join_run())  # while it lives no other run begins in this folder
