"""`diffctl evaluate`: any images against a data set or other images."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.flags import refuse_idle
from cli.shared.names import Extractor
from cli.shared.outputs import file_option
from cli.shared.progress import progress
from cli.shared.published import paper_json, show_against_statistics, show_beside, show_sweep
from cli.shared.tables import show, table
from diffusion.system.limits import MOST_BATCH

if TYPE_CHECKING:
    from diffusion.papers.paper import Paper

TWO_SIDED = 1.96  # standard deviations of a 95 % interval
WORTH_TELLING = 10**9  # bytes of memory


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
        Extractor | None,
        typer.Option("--extractor", help="[default: by the images' size; inception of statistics]"),
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
            "--batch-size", min=1, max=MOST_BATCH, help="Images at a time. [default: as suits the device]"
        ),
    ] = None,
    out: Annotated[
        Path | None, file_option("--out", "-o", help="Write scores and protocol card into this file of JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and protocol card as JSON.")] = False,
) -> None:
    """Score images: Fréchet and kernel distance to real ones, their floor, and the excess over it."""
    opened = _paper(paper, path, against)
    refuse_idle(context, "out", path is None, "without PATH: the sweep's scores lie in metrics/scores.json")
    if path is None or against is None:
        assert opened is not None, "else it was refused"
        return show_sweep(opened, as_json)
    if out is not None:
        from diffusion.system.outputs import try_output

        try_output(out, "--out")
    from diffusion.evaluate.open_images import is_prepared

    idle = os.path.exists(against) and not is_prepared(against)
    refuse_idle(context, "split", idle, f"since {against} is no prepared data set")
    name = extractor.value if extractor else None
    options = {"weights": weights, "weights_sha256": weights_sha256, "batch_size": batch_size}
    document = _scored(path, against, split.value, name, options)
    if out is not None:
        from diffusion.system.outputs import write_output_text

        write_output_text(out, json.dumps(document, indent=2) + "\n")
    if as_json:
        told = {} if opened is None else {"paper": paper_json(opened, document)}
        print(json.dumps({**document, **told}, indent=2, sort_keys=True))
        return
    show_against_statistics(document) if "not_scored" in document else _print_scores(document)
    if opened is not None:
        show_beside(opened, document)


def _paper(name: str | None, path: Path | None, against: Path | None) -> "Paper | None":
    """The paper that was asked for; UsageError unless there is something to score, or a paper to look up."""
    from diffusion.system.errors import UsageError

    if (path is None) != (against is None):
        raise UsageError("images are scored against others: give PATH and --against PATH")
    if name is None:
        if path is None:
            raise UsageError("give PATH and --against PATH, or --paper for the sweep's scores beside it")
        return None
    from diffusion.papers.paper import open_paper

    return open_paper(name)


def _scored(
    path: Path, against: Path, split: str, extractor: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The scores of the images; what cannot be is refused before anything heavy is loaded."""
    from diffusion.evaluate.memory import need_memory
    from diffusion.evaluate.pair import open_pair, open_sample
    from diffusion.evaluate.published import is_statistics, open_statistics
    from diffusion.protocol.extractors import default_extractor, extractor_spec

    if is_statistics(against):
        published, sample = open_statistics(against, extractor), open_sample(path)
        _tell_memory(need_memory(published.spec, len(sample), 2 * published.spec.features))
        from diffusion.evaluate.against_statistics import evaluate_against_statistics

        with progress("features") as watch:
            return evaluate_against_statistics(sample, published, progress=watch, **options)
    pair = open_pair(path, against, split)
    spec = extractor_spec(extractor or default_extractor(pair.real.images.shape[1]))
    _tell_memory(need_memory(spec, len(pair.sample), len(pair.real), len(pair.heldout or ())))
    from diffusion.evaluate.adhoc import evaluate_pair

    with progress("features") as watch:
        return evaluate_pair(pair, extractor=spec.name, progress=watch, **options)


def _tell_memory(needed: int) -> None:
    """Say what scoring will take where a person may wonder whether the machine has it."""
    if needed >= WORTH_TELLING:
        typer.echo(f"scoring takes about {needed / 1e9:.1f} GB of memory", err=True)


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
