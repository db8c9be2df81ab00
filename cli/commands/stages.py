"""`diffctl stage NAME`: the commands of dvc.yaml, and the classifier, which is no stage of the pipeline.

The `deps:` of a stage in dvc.yaml contain what its module in cli/stages/ imports from diffusion/. Its imports
from cli/ and tracking/ only watch and record, so a change there makes nothing stale.
"""

import os
from typing import Annotated

import typer

from cli.shared.startup_message import begin

app = typer.Typer(name="stage", help="A stage of the pipeline, as dvc.yaml runs it.", no_args_is_help=True)

# Set by DVC, by `diffctl run` and by rank 0 of a training, which print a message of their own.
ANNOUNCED_BY = ("DVC_STAGE", "DIFFCTL_WORK", "RANK")

Fresh = Annotated[bool, typer.Option("--fresh", help="Discard the saved state and train from scratch.")]
Keep = Annotated[bool, typer.Option("--keep", help="Resume although the code has changed.")]


@app.callback()
def stage(context: typer.Context) -> None:
    """A stage of the pipeline, as dvc.yaml runs it."""
    announced = not os.environ.keys().isdisjoint(ANNOUNCED_BY)
    begin(f"preparing the stage {context.invoked_subcommand}", silent=announced)
    from cli.stages.context import enter_stage

    enter_stage(context)


@app.command()
def data() -> None:
    """Download the data set and prepare it: data/prepared."""
    from cli.stages.data_stage import run_stage

    run_stage()


@app.command()
def reference() -> None:
    """Compute the features of the reference and of held-out real images: data/reference."""
    from cli.stages.reference_stage import run_stage

    run_stage()


@app.command()
def train(fresh: Fresh = False, keep: Keep = False) -> None:
    """Train, or resume the same training: models/model.safetensors."""
    from cli.stages.train_stage import run_stage

    run_stage(fresh, keep)


@app.command()
def sample() -> None:
    """Sample every cell of the grid that is not complete: samples/."""
    from cli.stages.sample_stage import run_stage

    run_stage()


@app.command()
def evaluate() -> None:
    """Score every cell against the reference: metrics/scores.json, and curves in MLflow."""
    from cli.stages.evaluate_stage import run_stage

    run_stage()


@app.command()
def report() -> None:
    """Write the report of the sweep: report/index.html, one file."""
    from cli.stages.report_stage import run_stage

    run_stage()


@app.command()
def classifier(fresh: Fresh = False, keep: Keep = False) -> None:
    """Train the classifier of params.yaml, or resume its training: models/classifier.safetensors."""
    from cli.stages.classifier_stage import run_stage

    run_stage(fresh, keep)
