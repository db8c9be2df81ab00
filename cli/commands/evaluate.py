"""`diffctl evaluate`: any images against a data set or other images."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.shared.flags import refuse_idle
from cli.shared.names import Extractor
from cli.shared.progress import progress
from cli.shared.tables import show, table
from diffusion.system.limits import MOST_BATCH

TWO_SIDED = 1.96  # standard deviations of a 95 % interval


class Split(StrEnum):
    """The split of a prepared data set that is the reference; the other one makes the floor."""

    train = "train"
    test = "test"


def evaluate(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A folder of images, an npz (arr_0) or a store.")],
    against: Annotated[
        Path, typer.Option("--against", help="The real images: likewise, or a prepared data set.")
    ],
    extractor: Annotated[
        Extractor | None, typer.Option("--extractor", help="[default: by the images' size]")
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="Of a prepared data set: which split is the reference.")
    ] = Split.train,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Where it brings none. [default: download]"),
    ] = None,
    weights_sha256: Annotated[
        str | None, typer.Option("--weights-sha256", help="Of weights that are not the published ones.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, max=MOST_BATCH, help="[default: as suits the device]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and protocol card as JSON.")] = False,
) -> None:
    """Score images: Fréchet and kernel distance to real ones, their floor, and the excess over it."""
    from diffusion.evaluate.open_images import is_prepared
    from diffusion.evaluate.pair import open_pair

    idle = os.path.exists(against) and not is_prepared(against)
    refuse_idle(context, "split", idle, f"since {against} is no prepared data set")
    pair = open_pair(path, against, split.value)

    from diffusion.evaluate.adhoc import evaluate_pair

    with progress("features") as watch:
        document = evaluate_pair(
            pair,
            extractor=extractor.value if extractor else None,
            weights=weights,
            weights_sha256=weights_sha256,
            batch_size=batch_size,
            progress=watch,
        )
    if as_json:
        print(json.dumps(document, indent=2, sort_keys=True))
    else:
        _print_scores(document)


def _print_scores(document: dict[str, Any]) -> None:
    """A row a score, with its interval and what held-out real images score; no score that misleads."""
    from diffusion.protocol.extractors import extractor_spec
    from diffusion.protocol.scoring import SHARES

    scores, reference = document["scores"], document["reference"]
    spec, floor = extractor_spec(document["extractor"]), reference.get("floor", {})
    columns = ["score", f"{document['images']['count']:,} images"]
    if intervals := document.get("intervals"):
        columns.append(f"{intervals['confidence']:.0%} interval")
    if floor:
        columns.append("real, held out" + (" (extrapolated)" if floor["extrapolated"] else ""))
    made = table(*columns)
    shown = [spec.distance, "excess", spec.limit, spec.kernel_distance, spec.gaussian_distance or ""]
    for name in [*shown, *map(spec.named, SHARES), "memorisation", *spec.results]:
        if name in scores:
            row = [name, f"{scores[name]:.5g}", *([_interval(document, name)] if intervals else [])]
            row.append(f"{floor[name]:.5g}" if name in floor else "")
            made.add_row(*row[: len(columns)])
    show(made)
    print(
        f"against {reference['reference_count']:,} images of {reference['name']} "
        f"({reference['reference_split']}), extractor {reference['extractor']}"
    )


def _interval(document: dict[str, Any], name: str) -> str:
    from diffusion.choice.certainty import interval_of
    from diffusion.protocol.scores import Scored

    if name == "memorisation":
        return f"by chance 0 ± {TWO_SIDED * document['scores']['memorisation_std']:.2g}"
    scored = Scored(**{field: document[field] for field in Scored.model_fields if field in document})
    ends = interval_of(scored, name)
    return "" if ends is None else f"{ends.low:.5g} to {ends.high:.5g}"
