"""`diffctl evaluate`: any images against a data set or other images."""

import json
import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli.shared.first_word import begin
from cli.shared.flags import refuse_idle
from cli.shared.names import Extractor
from cli.shared.outputs import file_option
from cli.shared.progress import progress
from cli.shared.published import paper_json, show_beside, show_sweep
from cli.shared.scored import show_scores
from diffusion.system.limits import MAX_BATCH, MAX_NEIGHBOURS

if TYPE_CHECKING:
    from diffusion.papers.paper import Paper

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
    opened = _paper(paper, path, against)
    refuse_idle(context, "out", path is None, "without PATH: the sweep's scores lie in metrics/scores.json")
    if path is None or against is None:
        assert opened is not None, "else it was refused"
        return show_sweep(opened, as_json)
    if out is not None:
        from diffusion.system.output_paths import check_output

        check_output(out, "--out")
    from diffusion.evaluate.adhoc_inputs import is_prepared

    idle = os.path.exists(against) and not is_prepared(against)
    refuse_idle(context, "split", idle, f"since {against} is no prepared data set")
    names = _each_once(extractor or [])
    options = {
        "weights": weights,
        "weights_sha256": weights_sha256,
        "batch_size": batch_size,
        "prc_images": prc_images,
        "prc_samples": prc_samples,
    }
    begin("reading the images", as_json)
    document = _scored(path, against, split.value, names, options)
    if out is not None:
        from diffusion.system.output_paths import write_output_text

        write_output_text(out, json.dumps(document, indent=2) + "\n")
    if as_json:
        told = {} if opened is None else {"paper": paper_json(opened, document)}
        print(json.dumps({**document, **told}, indent=2, sort_keys=True))
        return
    show_scores(document)
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


def _each_once(extractors: Sequence[Extractor]) -> list[str]:
    """Their names; UsageError for one that is given twice."""
    from diffusion.system.errors import UsageError

    names = [one.value for one in extractors]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--extractor {name} is given twice: leave one out")
    return names


def _scored(
    path: Path, against: Path, split: str, extractors: list[str], options: dict[str, Any]
) -> dict[str, Any]:
    """The scores of the images; what cannot be is refused before anything heavy is loaded."""
    from diffusion.evaluate.statistics_file import is_statistics

    if is_statistics(against):
        asked = _against_statistics(path, against, extractors)
    else:
        asked = _against_images(path, against, split, extractors)
    given = _weights_of(list(asked), options.pop("weights"), options.pop("weights_sha256"))
    _tell_memory(max(one.memory for one in asked.values()))
    from diffusion.evaluate.adhoc import check_extractors, merge_spaces

    check_extractors(given)
    documents = []
    for name, one in asked.items():  # one after the other, so that no two take memory at a time
        with progress("features" if len(asked) == 1 else name) as watch:
            documents.append(one.score(**given[name], **options, progress=watch))
    return merge_spaces(documents)


class _Asked(NamedTuple):
    """A feature space: what scores in it, and the bytes of memory that it takes."""

    score: Callable[..., dict[str, Any]]
    memory: int


def _against_statistics(path: Path, against: Path, extractors: list[str]) -> dict[str, _Asked]:
    """The spaces by their extractors' names."""
    from diffusion.evaluate.adhoc_inputs import images_in_statistics, open_sample, require_memory
    from diffusion.evaluate.statistics_file import open_statistics

    names: list[str | None] = [*extractors] or [None]
    opened = [open_statistics(against, name) for name in names]
    sample = open_sample(path)
    images = images_in_statistics(against, sample)

    def score(published: Any, **options: Any) -> dict[str, Any]:
        from diffusion.evaluate.adhoc import score_against_statistics

        return score_against_statistics(sample, published, images, **options)

    def asked(published: Any) -> _Asked:
        real = max(published.spec.features, len(images or ()))
        return _Asked(partial(score, published), require_memory(published.spec, len(sample), real))

    return {published.spec.name: asked(published) for published in opened}


def _against_images(path: Path, against: Path, split: str, extractors: list[str]) -> dict[str, _Asked]:
    """The spaces by their extractors' names."""
    from diffusion.evaluate.adhoc_inputs import open_inputs, require_memory
    from diffusion.protocol.extractors import default_extractor, extractor_spec

    pair = open_inputs(path, against, split)
    counts = len(pair.sample), len(pair.real), len(pair.heldout or ())
    labelled = pair.sample.labels is not None and pair.real.labels is not None

    def score(name: str, **options: Any) -> dict[str, Any]:
        from diffusion.evaluate.adhoc import score_images

        return score_images(pair, extractor=name, **options)

    names = extractors or [default_extractor(pair.real.images.shape[1])]
    return {
        name: _Asked(partial(score, name), require_memory(extractor_spec(name), *counts, labelled))
        for name in names
    }


def _weights_of(names: list[str], weights: Path | None, sha256: str | None) -> dict[str, dict[str, Any]]:
    """What each extractor is given; UsageError where a file of weights could be of more than one network."""
    from diffusion.protocol.extractors import extractor_spec
    from diffusion.system.errors import UsageError

    takes = [name for name in names if not extractor_spec(name).weights.comes_along] or names[:1]
    if weights is not None and len({extractor_spec(name).weights for name in takes}) > 1:
        raise UsageError(
            f"--weights is a file of one network, and {' and '.join(takes)} are several: score them one by "
            "one, or put the published files in torch's hub cache"
        )
    given = {"weights": weights, "weights_sha256": sha256}
    return {name: given if name in takes else {} for name in names}


def _tell_memory(needed: int) -> None:
    """Say what scoring will take where a person may wonder whether the machine has it."""
    if needed >= WORTH_TELLING:
        typer.echo(f"scoring takes about {needed / 1e9:.1f} GB of memory", err=True)
