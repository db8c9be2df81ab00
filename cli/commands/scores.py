"""Scores: `diffctl evaluate`, `sweep`, `nll`, `compare` and `seeds`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import typer

from cli.shared.command import argument, command, option, out_option
from cli.shared.options import Extractor, JsonOptions, ModelSourceOptions, StorePath, axis_options
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_COUNT, MAX_NEIGHBOURS, MAX_SEED, MAX_STEPS

app = typer.Typer()

WEIGHTS = ("weights", "weights_sha256")
LIMITS = ("prc_images", "prc_samples", "kid_subset_size")
SCORING = ("extractor", "split", *WEIGHTS, "batch_size", *LIMITS, "feature_likelihood")  # options of evaluate


@command(app, "cli.actions.scores.image_scores:evaluate_images", "reading the images")
class Evaluate(JsonOptions, ModelSourceOptions):
    """Score images by their distances to real ones, or a model's edits of held-out pictures.

    Prints Fréchet and kernel distances, the floor of held-out real images, and the excess over it. With
    --edit it measures PATH's pictures by each operator, restores them by each method in each number of
    steps, and prints the error of what was measured, PSNR, SSIM, spread and kernel distance. With --run-id
    or --champion these are also logged to the run of that model.
    """

    path: Path | None = argument(
        "Image folder, npz (arr_0) or store; with --edit a store. "
        "[default with --paper: the sweep; --edit: data/prepared/test]"
    )
    against: Path | None = option("Real images: likewise, prepared data, or statistics.")
    paper: str | None = option("Compare with a paper: adm, ddim, edm, or a YAML of its scores.", paths=True)
    extractor: list[Extractor] | None = option(
        "Feature extractor; repeatable. [default: by image size; inception for statistics]"
    )
    split: Literal["train", "test"] | None = option(
        "The split of prepared data to compare with. [default: train]"
    )
    weights: Path | None = option("The extractor's weights. [default: package or download]")
    weights_sha256: str | None = option("SHA-256 of --weights other than the published ones.")
    batch_size: int | None = option("Images per forward pass. [default: by device]", min=1, max=MAX_BATCH)
    prc_images: int | None = option(
        "Real images for precision, recall, density, coverage. [default: 10,000]", min=1, max=MAX_NEIGHBOURS
    )
    prc_samples: int | None = option("Scored images for these. [default: same]", min=1, max=MAX_NEIGHBOURS)
    feature_likelihood: bool = option("Add FLD, which detects copies; --against must be prepared data.")
    kid_subset_size: int | None = option(
        "Images in a subset of the kernel distance, at most. [default: 500]", min=2, max=MAX_NEIGHBOURS
    )
    edit: list[str] | None = option("Score edits: an operator, such as mask:0,0,14,28 or blur:1; repeatable.")
    method: list[str] | None = option("With --edit: a method; repeatable. [default: ddnm]")
    steps: str | None = option("With --edit: numbers of steps. [default: 50]", metavar="N,…")
    spacing: str | None = option(
        "With --edit: the times of the steps. [default: uniform; karras for a model of process edm]",
        metavar="NAME",
    )
    num_images: int | None = option("With --edit: pictures. [default: 100]", min=2, max=MAX_COUNT)
    num: int | None = option(
        "With --edit: results for each picture. [default: 4]", "--num", "-n", min=1, max=1000
    )
    out: Path | None = out_option("Write scores and protocol card as JSON.", kind=".json")
    html: Path | None = out_option(
        "With --edit: write a page with curves and pictures.", kind=".html", flags=("--html",)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit:
            self._check_edit()
            return
        given = self.given("method", "steps", "spacing", "num_images", "num", "html")
        idle = [f"--{name.replace('_', '-')}" for name in given] + ["a model"] * self.names_model
        if idle:
            raise UsageError(f"{idle[0]} is for the scores of edits: add --edit, or leave it out")
        if (self.path is None) != (self.against is None):
            raise UsageError("PATH and --against need each other: give the images and the real ones")
        if self.path is None and self.paper is None:
            raise UsageError("nothing to score: give PATH and --against, or --paper for those of the sweep")
        if self.path is None:
            self.refuse("without PATH: the scores of the sweep are in metrics/scores.json", *SCORING, "out")

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of these options that were given."""
        return {name: value for name in names if (value := getattr(self, name))}

    def refuse(self, where: str, *names: str) -> None:
        """Raise UsageError for the first of these options that was given but has no effect there."""
        for name in self.given(*names):
            raise UsageError(f"--{name.replace('_', '-')} has no effect {where}, so leave it out")

    def _check_edit(self) -> None:
        self.refuse("on scores of edits", "paper", "feature_likelihood", "prc_images", "prc_samples")
        if len(self.extractor or []) > 1:
            raise UsageError("--edit excludes a second --extractor: leave it out")
        if find_spec("torchmetrics") is None:
            raise UsageError("scores of edits need torchmetrics: pip install 'diffctl[edit]'")


@command(app, "cli.actions.scores.model_sweep:sweep_model", "loading the model")
class Sweep(JsonOptions, ModelSourceOptions):
    """Sample and score a grid of settings of a trained model.

    With --run-id or --champion the scores are also logged to the MLflow run of that model.
    """

    num_images: int | None = option("Images per cell. [default: params.yaml's]", min=2, max=MAX_COUNT)
    axes: dict[str, Any] = axis_options()


@command(app, "cli.images.image_analysis:compute_nll", "loading the model")
class Nll(JsonOptions, ModelSourceOptions):
    """Compute bits per dimension of images, by the variational bound or an ODE.

    The probability-flow ODE is for continuous processes, such as edm and flow, which have no bound.
    """

    out: Path = out_option(
        "FILE.png of the terms by t; .csv has the values.", ".png", default=Path("plots/nll.png")
    )
    store: StorePath = None
    num: int | None = option("Number of images. [default: all]", "--num", "-n", min=1, max=MAX_COUNT)
    steps: int | None = option("Timesteps, or steps of the ODE. [default: all, or 64]", min=1, max=MAX_STEPS)
    seed: int = option("The seed of the noise.", min=0, max=MAX_SEED, default=0)
    batch_size: int = option("Images per forward pass.", min=1, max=MAX_BATCH, default=64)


@command(app, "cli.actions.scores.run_comparison:compare_runs", "reading the scores")
class Compare(JsonOptions):
    """Compare the scores of runs with equal protocols.

    Trainings that differ only in the seed are one column with mean and standard deviation. A gap within the
    confidence interval is marked as not significant. A row without intervals has no best.
    """

    names: list[str] = argument(
        "A run's id (or a prefix), its name, or a scores.json.", metavar="RUN", paths=True
    )
    metric: list[str] | None = option("Show only this score; repeatable.")
    html: Path | None = out_option(
        "Also write a page with curves and images.", kind=".html", flags=("--html",)
    )
    per_seed: bool = option("Show trainings that differ only in the seed separately.")
    open_page: bool = option("Open MLflow's page of these runs in a browser.", "--open")

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise UsageError("compare needs two runs or more")


@command(app, "cli.actions.scores.run_comparison:show_seeds", "reading the scores of the seeds")
class Seeds(JsonOptions):
    """Compare the scores of this training with those of other seeds in MLflow.

    For each score of the best cell: its value, mean and standard deviation over the seeds, and its rank.
    """

    html: Path | None = out_option("Also write the report with this table.", kind=".html", flags=("--html",))
