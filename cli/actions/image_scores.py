"""The scores of any images against a data set, statistics or other images, next to those of a paper."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cli.actions.score_tables import show_scores
from cli.commands.scores import Evaluate
from cli.shared.progress import progress
from cli.shared.tables import show, table
from diffusion.evaluate.adhoc import check_extractors, merge_spaces, score_against_statistics, score_images
from diffusion.evaluate.adhoc_inputs import images_in_statistics, is_prepared, open_images, open_inputs
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.statistics_file import is_statistics, open_statistics
from diffusion.layout import SCORES
from diffusion.papers.paper import (
    FigureComparison,
    Paper,
    SpaceScores,
    compare_cells,
    compare_spaces,
    open_paper,
    shared_differences,
)
from diffusion.protocol.extractors import default_extractor, extractor_spec
from diffusion.protocol.scores_document import read_scores
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import check_output, write_output_text
from diffusion.system.section import validate


def evaluate_images(options: Evaluate) -> None:
    """Carry out `diffctl evaluate`."""
    opened = None if options.paper is None else open_paper(options.paper)
    if options.path is None or options.against is None:
        assert opened is not None, "else it was refused"
        found = compare_cells(opened, read_scores(SCORES).cells)
        if options.as_json:
            return typer.echo(json.dumps(_as_json(opened, found), indent=2))
        return _show(opened, found)
    if options.out is not None:
        check_output(options.out, "--out")
    idle = os.path.exists(options.against) and not is_prepared(options.against)
    options.refuse_idle("split", idle, f"since {options.against} is no prepared data set")
    document = _scored(options.path, options.against, options)
    if options.out is not None:
        write_output_text(options.out, json.dumps(document, indent=2) + "\n")
    found = [] if opened is None else compare_spaces(opened, {None: _spaces(document)})
    if options.as_json:
        extra = {} if opened is None else {"paper": _as_json(opened, found)}
        return print(json.dumps({**document, **extra}, indent=2, sort_keys=True))
    show_scores(document)
    if opened is not None:
        typer.echo()
        _show(opened, found)


Score = Callable[..., dict[str, Any]]


def _scored(path: Path, against: Path, options: Evaluate) -> dict[str, Any]:
    """Return the scores of the images in each feature space."""
    extractors = list(dict.fromkeys(one.value for one in options.extractor or []))
    if is_statistics(against):
        spaces = _against_statistics(path, against, extractors)
    else:
        spaces = _against_images(path, against, options.split.value, extractors)
    sections = _sections(list(spaces), options)
    check_extractors(sections)
    documents = []
    for section, score in zip(sections, spaces.values(), strict=True):  # in sequence, to limit memory
        with progress("features" if len(spaces) == 1 else section.extractor) as watch:
            documents.append(score(section=section, progress=watch))
    return merge_spaces(documents)


def _against_statistics(path: Path, against: Path, extractors: list[str]) -> dict[str, Score]:
    """Return the scoring function of each extractor."""
    names: list[str | None] = [*extractors] or [None]
    opened = [open_statistics(against, name) for name in names]
    sample = open_images(path)
    images = images_in_statistics(against, sample)
    return {one.spec.name: partial(score_against_statistics, sample, one, images) for one in opened}


def _against_images(path: Path, against: Path, split: str, extractors: list[str]) -> dict[str, Score]:
    """Return the scoring function of each extractor."""
    pair = open_inputs(path, against, split)
    names = extractors or [default_extractor(pair.real.images.shape[1])]
    return {name: partial(score_images, pair) for name in names}


def _sections(names: list[str], options: Evaluate) -> list[EvaluateConfig]:
    """Return the section of each extractor; UsageError if the file of weights fits several networks."""
    takes = [name for name in names if not extractor_spec(name).weights.comes_along] or names[:1]
    if options.weights is not None and len({extractor_spec(name).weights for name in takes}) > 1:
        raise UsageError(
            f"--weights is a file of one network, and {' and '.join(takes)} are several: score them one by "
            "one, or put the published files in torch's hub cache"
        )
    fields = {name: getattr(options, name) for name in ("batch_size", "prc_images", "prc_samples")}
    shared = {name: value for name, value in fields.items() if value is not None}
    weights = {"weights": options.weights, "weights_sha256": options.weights_sha256}
    given = {name: {"extractor": name, **shared, **(weights if name in takes else {})} for name in names}
    return [validate(EvaluateConfig, values, "diffctl evaluate") for values in given.values()]


def _spaces(document: dict[str, Any]) -> list[SpaceScores]:
    spaces = [document, *document.get("spaces", {}).values()]
    return [SpaceScores(one["card"], one["scores"]) for one in spaces]


def _as_json(paper: Paper, found: Sequence[FigureComparison]) -> dict[str, Any]:
    about = {"title": paper.title, "source": paper.source, "note": paper.note}
    return {**about, "figures": [one.as_json() for one in found]}


def _show(paper: Paper, found: Sequence[FigureComparison]) -> None:
    """Print a row for each score; differences that all rows share are printed once below."""
    alike = shared_differences([one.differences for one in found])
    cells = any(one.cell for one in found)
    made = table("published", "where", "score", "value", "here", *(["cell"] if cells else []), "comparable")
    for one in found:
        own = ", ".join(str(departure) for departure in one.differences if departure not in alike)
        value = "" if one.here is None else f"{one.here:.5g}"
        verdict = "yes" if one.is_comparable else f"no: {own}" if own else "no"
        row = [one.figure.name, one.figure.where, one.figure.metric, f"{one.figure.value:g}", value]
        made.add_row(*row, *([one.cell or ""] if cells else []), verdict)
    show(made)
    if alike:
        typer.echo(f"none is comparable: the paper has {', '.join(map(str, alike))}")
    typer.echo(f"{paper.title}, {paper.source}" + (f": {paper.note}" if paper.note else ""))
