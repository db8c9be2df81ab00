"""`diffctl sample`: images from a model file, an MLflow run or the champion."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.shared.options import (
    AsJson,
    Champion,
    ModelFile,
    RunId,
    Selection,
    check_output_suffix,
    file_option,
    refuse_idle,
)
from cli.shared.sampling_options import SamplingCommand, flag, given_options, refuse_idle_options
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import (
    MAX_BATCH,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_HELD,
)

USUAL_NUM = 16  # images, without --num and --index


Klass = Annotated[
    str | None, typer.Option("--class", help="A class, by name or number. [default: all, cyclically]")
]


def sample(
    context: typer.Context,
    out: Annotated[
        Path,
        file_option("--out", "-o", help="FILE.png (grid), .gif (denoising) or .npz."),
    ],
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, max=MAX_HELD, help="Number of images. [default: 16]")
    ] = None,
    index: Annotated[
        int | None,
        typer.Option("--index", min=0, max=MAX_COUNT, help="Only image I, as in any batch."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            max=MAX_COUNT,
            help="NFE per image: use the best cell of the model's sweep for it.",
        ),
    ] = None,
    klass: Klass = None,
    classifier: Annotated[
        Path | None,
        typer.Option("--classifier", help="Guide by a classifier that `diffctl stage classifier` trained."),
    ] = None,
    classifier_scale: Annotated[
        float, typer.Option("--classifier-scale", min=0.0, max=MAX_GUIDANCE, help="How strongly (ADM's s).")
    ] = 1.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass.")
    ] = 64,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    as_json: AsJson = False,
) -> None:
    """Sample images from a model.

    Image I depends on the seed and on I only. With --champion or --run-id, settings without an option are
    those of the best cell of the model's sweep.
    """
    check_output_suffix(out, (".png", ".gif", ".npz"))
    options = given_options(context)
    if budget is not None:
        _refuse_budget_options(options, classifier)
    refuse_idle_options(options)
    refuse_idle(context, "classifier_scale", classifier is None, "without --classifier")
    indices = _indices(num, index)
    begin("loading the model", as_json)
    from cli.actions import sample_images

    sample_images.sample_images(
        out,
        options,
        budget,
        klass,
        classifier,
        classifier_scale,
        batch_size,
        Selection(model, run_id, champion),
        as_json,
        indices,
    )


def _indices(num: int | None, index: int | None) -> range:
    if num is not None and index is not None:
        raise UsageError("--num and --index exclude each other: leave one out")
    return range(num or USUAL_NUM) if index is None else range(index, index + 1)


def _refuse_budget_options(options: dict[str, Any], classifier: Path | None) -> None:
    """Raise UsageError if an option is given that the budget decides: all but the seed."""
    decided = {**options, "classifier": classifier, "seed": None}
    if given := [name for name, value in decided.items() if value is not None]:
        raise UsageError(f"--budget takes {flag(given[0])} from the model's sweep: give one of the two")


sample.command_class = SamplingCommand  # type: ignore[attr-defined]
