"""`diffctl evaluate`: any images against a data set or other images."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.progress import progress
from cli.tables import show, table


class Split(StrEnum):
    """The split of a prepared data set that is the reference; the other one makes the floor."""

    train = "train"
    test = "test"


def evaluate(
    path: Annotated[Path, typer.Argument(help="A folder of images, an npz (arr_0) or a store.")],
    against: Annotated[
        Path, typer.Option("--against", help="The real images: likewise, or a prepared data set.")
    ],
    extractor: Annotated[
        str | None,
        typer.Option(
            "--extractor",
            help="effnet-lite0-64, effnet-lite0-96 or inception-v3-compat. [default: by the images' size]",
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="Of a prepared data set: which split is the reference.")
    ] = Split.train,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A file with Inception's weights. [default: download]")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and protocol card as JSON.")] = False,
) -> None:
    """Score images: Fréchet and kernel distance to real ones, their floor, and the excess over it."""
    from diffusion.evaluation.compare import evaluate_images

    with progress("features") as watch:
        document = evaluate_images(
            path,
            against,
            extractor=extractor,
            split=split.value,
            weights=weights,
            batch_size=batch_size,
            progress=watch,
        )
    if as_json:
        print(json.dumps(document, indent=2, sort_keys=True))
    else:
        _print_scores(document)


def _print_scores(document: dict[str, Any]) -> None:
    scores, reference = document["scores"], document["reference"]
    floor = reference.get("floor", {})
    count = document["images"]["count"]
    columns = ["score", f"{count:,} images"]
    if floor:
        columns.append("real, held out" + (" (extrapolated)" if floor["extrapolated"] else ""))
    made = table(*columns)
    for name in scores:
        if name == "floor" or name.endswith("_std"):
            continue
        row = [name, _value(scores, name), _value(floor, name) if name in floor else ""]
        made.add_row(*row[: len(columns)])
    show(made)
    print(
        f"against {reference['reference_count']:,} images of {reference['name']} "
        f"({reference['reference_split']}), extractor {reference['extractor']}"
    )


def _value(scores: dict[str, Any], name: str) -> str:
    std = scores.get(f"{name}_std")
    return f"{scores[name]:.5g}" + ("" if std is None else f" ± {std:.2g}")
