"""`diffctl evaluate`: any images against a data set or other images."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import Extractor, file_option, refuse_idle
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_NEIGHBOURS


class Split(StrEnum):
    """The split of a prepared data set that is the reference; the other one makes the floor."""

    train = "train"
    test = "test"


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of images, an npz (arr_0) or a store. [default with --paper: the sweep's scores]"
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="The real images: the same, a prepared data set, or published statistics."
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            "--paper", help="Set the scores beside a paper's: adm, ddim, edm, or a YAML file of figures."
        ),
    ] = None,
    extractor: Annotated[
        list[Extractor] | None,
        typer.Option(
            "--extractor",
            help="May be given again, for more. [default: by the images' size; inception of statistics]",
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="Which split of a prepared data set is the reference.")
    ] = Split.train,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="The extractor's file, where no package has it. [default: download]"),
    ] = None,
    weights_sha256: Annotated[
        str | None,
        typer.Option("--weights-sha256", help="That of --weights, where they are not the published ones."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, max=MAX_BATCH, help="Images at a time. [default: as suits the device]"
        ),
    ] = None,
    prc_images: Annotated[
        int | None,
        typer.Option(
            "--prc-images",
            min=1,
            max=MAX_NEIGHBOURS,
            help="Real images at most for precision, recall, density and coverage. [default: 10,000]",
        ),
    ] = None,
    prc_samples: Annotated[
        int | None,
        typer.Option(
            "--prc-samples",
            min=1,
            max=MAX_NEIGHBOURS,
            help="The same of the scored images. [default: as --prc-images]",
        ),
    ] = None,
    out: Annotated[
        Path | None, file_option("--out", "-o", help="Write scores and protocol card into this file of JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and protocol card as JSON.")] = False,
) -> None:
    """Score images: Fréchet and kernel distance to real ones, their floor, and the excess over it."""
    _refuse_incomplete(path, against, paper)
    refuse_idle(
        context, "out", path is None, "without PATH: the scores of the sweep are in metrics/scores.json"
    )
    begin("reading the images", as_json)
    from cli.actions import image_scores

    image_scores.evaluate_images(
        context,
        path,
        against,
        paper,
        extractor,
        split,
        weights,
        weights_sha256,
        batch_size,
        prc_images,
        prc_samples,
        out,
        as_json,
    )


def _refuse_incomplete(path: Path | None, against: Path | None, paper: str | None) -> None:
    """Raise UsageError unless there are images to score or a paper to compare with."""
    if (path is None) != (against is None):
        raise UsageError("images are scored against others: give PATH and --against PATH")
    if path is None and paper is None:
        raise UsageError("give PATH and --against PATH, or --paper for the scores of the sweep")
