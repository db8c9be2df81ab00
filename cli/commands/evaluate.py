"""`diffctl evaluate`: scores of any images against a data set or other images."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import Extractor, file_option, refuse_idle
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_NEIGHBOURS


class Split(StrEnum):
    """The split of a prepared data set that is the reference; the other one gives the floor."""

    train = "train"
    test = "test"


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Image folder, npz (arr_0) or store. [default with --paper: scores of the sweep]"
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="Real images: likewise, a prepared data set, or published statistics."
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option("--paper", help="Compare with a paper: adm, ddim, edm, or a YAML file of its scores."),
    ] = None,
    extractor: Annotated[
        list[Extractor] | None,
        typer.Option(
            "--extractor",
            help="Feature extractor; repeatable. [default: by image size; inception for statistics]",
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="The split of a prepared data set to compare with.")
    ] = Split.train,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="The extractor's weights file. [default: package or download]"),
    ] = None,
    weights_sha256: Annotated[
        str | None,
        typer.Option("--weights-sha256", help="SHA-256 of --weights, if they are not the published ones."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, max=MAX_BATCH, help="Images per forward pass. [default: by device]"
        ),
    ] = None,
    prc_images: Annotated[
        int | None,
        typer.Option(
            "--prc-images",
            min=1,
            max=MAX_NEIGHBOURS,
            help="Real images for precision, recall, density, coverage. [default: 10,000]",
        ),
    ] = None,
    prc_samples: Annotated[
        int | None,
        typer.Option(
            "--prc-samples",
            min=1,
            max=MAX_NEIGHBOURS,
            help="Scored images for these. [default: as --prc-images]",
        ),
    ] = None,
    out: Annotated[
        Path | None, file_option("--out", "-o", help="Write scores and protocol card as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and protocol card as JSON.")] = False,
) -> None:
    """Score images by their distances to real ones.

    Prints Fréchet and kernel distances, the floor of held-out real images, and the excess over it.
    """
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
        raise UsageError("PATH and --against need each other: give both")
    if path is None and paper is None:
        raise UsageError("nothing to score: give PATH and --against, or --paper for the scores of the sweep")
