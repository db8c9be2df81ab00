"""The pipeline and its settings: `diffctl run`, `stage`, `use`, `set`, `check`, `schema`, `deploy`, `emit`.

The code of a stage is what its module in cli/stages/ imports from diffusion/ (flows/stage_code.py). What it
imports from cli/ and tracking/ only watches and records, so a change there makes nothing stale.
"""

import os
from pathlib import Path

import typer

from cli.shared.command import CommandOptions, argument, begin, command, group, option, out_option
from cli.shared.options import JsonOptions, profile_names
from diffusion.protocol.paper_protocols import PROTOCOLS
from diffusion.system.errors import UsageError, printable

app = typer.Typer()
stage_app = group(app, "stage", "A stage of the pipeline, as DVC runs it.")
emit_app = group(app, "emit", "Send an event to Prefect, which may start a run.")


@command(app, "cli.actions.pipeline:run_stages", "reading params.yaml")
class Run(CommandOptions):
    """Run the pipeline: data, model, samples, scores, report, registry.

    Only stale stages run. Ctrl-C saves the training; the same command, without --fresh, resumes it.
    """

    push: bool = option("Push the results to the DVC remote.")
    fresh: bool = option("Train and sample from scratch, without saved states.")
    keep: bool = option("Resume the training although its code has changed.")


# Set by DVC, by `diffctl run` and by rank 0 of a training, which print a message of their own.
ANNOUNCED_BY = ("DVC_STAGE", "DIFFCTL_WORK", "RANK")


class StageOptions(CommandOptions):
    """Base class of the stages."""

    def run(self) -> None:
        """Print the stage, then check params.yaml, and run the body while no other run uses this folder."""
        name = type(self).__name__.removesuffix("Stage").lower()
        begin(f"preparing the stage {name}", silent=not os.environ.keys().isdisjoint(ANNOUNCED_BY))
        from cli.stages.context import enter_stage  # it loads the configuration

        with enter_stage(name):
            super().run()


class TrainingOptions(StageOptions):
    """How a training resumes."""

    fresh: bool = option("Discard the saved state and train from scratch.")
    keep: bool = option("Resume although the code has changed.")


@command(stage_app, "cli.stages.code_stage:run_stage", name="code")
class CodeStage(CommandOptions):
    """Digest the code of every stage: code.yaml, an input of the stages for DVC."""


@command(stage_app, "cli.stages.data_stage:run_stage", name="data")
class DataStage(StageOptions):
    """Download the data set and prepare it: data/prepared."""


@command(stage_app, "cli.stages.reference_stage:run_stage", name="reference")
class ReferenceStage(StageOptions):
    """Compute the features of the reference and of held-out real images: data/reference."""


@command(stage_app, "cli.stages.train_stage:run_stage", name="train")
class TrainStage(TrainingOptions):
    """Train, or resume the same training: models/model.safetensors."""


@command(stage_app, "cli.stages.sample_stage:run_stage", name="sample")
class SampleStage(StageOptions):
    """Sample every cell of the grid that is not complete: samples/."""


@command(stage_app, "cli.stages.evaluate_stage:run_stage", name="evaluate")
class EvaluateStage(StageOptions):
    """Score every cell against the reference: metrics/scores.json, and curves in MLflow."""


@command(stage_app, "cli.stages.report_stage:run_stage", name="report")
class ReportStage(StageOptions):
    """Write the report of the sweep: report/index.html, one file."""


@command(stage_app, "cli.stages.classifier_stage:run_stage", name="classifier")
class ClassifierStage(TrainingOptions):
    """Train the classifier of params.yaml, or resume its training: models/classifier.safetensors."""


@command(app, "cli.actions.project.params_file:use")
class Use(CommandOptions):
    """Copy a profile to params.yaml, or edit params.yaml in place.

    --init-from pins the initial weights. --protocol sets each field that differs from a paper, and lists
    the changes with their sources.
    """

    profile: str | None = argument(
        "A profile of diffctl, or a file.", autocompletion=profile_names, paths=True
    )
    force: bool = option("Overwrite unsaved edits.")
    init_from: str | None = option(
        "Initial weights: a file, MLflow run, champion[:DATA], version:N[:DATA] or none.",
        metavar="MODEL",
        paths=True,
    )
    protocol: str | None = option(
        "Follow a paper: adm, edm or ddim.", metavar="PAPER", autocompletion=lambda: list(PROTOCOLS)
    )

    def __post_init__(self) -> None:
        if self.profile is None and self.init_from is None and self.protocol is None:
            raise UsageError("name a profile, a model with --init-from, or a paper with --protocol")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise UsageError(f"--protocol {printable(self.protocol)}: give one of {', '.join(PROTOCOLS)}")


@command(app, "cli.actions.project.params_file:set_values")
class Set(CommandOptions):
    """Edit params.yaml in place. Comments stay, and nothing is written if a value does not fit."""

    assignments: list[str] = argument(
        "A key and its value in YAML, such as train.lr.rate=0.001 or sweep.steps=[5,10].", metavar="KEY=VALUE"
    )


@command(app, "cli.actions.project.project_checks:check_project", "checking the project")
class Check(JsonOptions):
    """Check data, model, disk, memory and weights for errors before a run.

    With --measure also estimate how long training, sampling and scoring take.
    """

    measure: bool = option("Estimate the durations from a few measured steps and images.")


@command(app, "cli.actions.project.project_checks:write_schema", "loading the schema")
class Schema(CommandOptions):
    """Print the JSON schema of params.yaml, for editors."""

    out: Path | None = out_option("FILE.json. [default: standard output]", ".json")


@command(app, "cli.actions.pipeline:deploy_to_prefect", "connecting to Prefect")
class Deploy(JsonOptions):
    """Create or update the deployments of prefect.yaml on Prefect.

    This includes their work pool and automations. The server is PREFECT_API_URL, or that of `diffctl up`.
    """


@command(emit_app, "cli.actions.pipeline:emit_event", "connecting to Prefect", name="data-changed")
class DataChanged(CommandOptions):
    """Report changed data, such as after `dvc push`: this starts the deployment `retrain`."""

    data: str | None = option("The name of the data set. [default: from params.yaml]")
