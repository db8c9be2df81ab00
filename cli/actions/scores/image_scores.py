"""The scores of any images against a data set, statistics or other images, next to those of a paper."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cli.actions.scores.edit_scores import score_edits
from cli.actions.scores.score_tables import show_scores
from cli.commands.scores import LIMITS, WEIGHTS, Evaluate
from cli.shared.console import print_table, progress
from diffusion.evaluate import adhoc
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import space_extractor
from diffusion.evaluate.statistics_file import has_array, is_statistics, open_statistics
from diffusion.layout import SCORES
from diffusion.papers import paper as papers
from diffusion.protocol.extractors import default_extractor, extractor_spec
from diffusion.protocol.scores_document import read_scores
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output_text
from diffusion.system.section import validate
from flows.run_lock import join_run

SHARED = ("images", "extractor", "intervals")  # keys that a document has once for all feature spaces


def evaluate_images(options: Evaluate) -> None:
    if options.edit:
        return score_edits(options)
    paper = None if options.paper is None else papers.open_paper(options.paper)
    if options.path is None or options.against is None:
        assert paper is not None, "else it was refused"
        found = papers.compare_cells(paper, read_scores(SCORES).cells)
        return options.answer(_paper_json(paper, found), partial(_show_paper, paper, found))
    with join_run():
        document = _score(options.path, options.against, options)
    if options.out is not None:
        write_output_text(options.out, json.dumps(document, indent=2) + "\n")
    if paper is None:
        return options.answer(document, partial(show_scores, document))
    spaces = [document, *document.get("spaces", {}).values()]
    scores = [papers.SpaceScores(one["card"], one["scores"]) for one in spaces]
    found = papers.compare_spaces(paper, {None: scores})

    def show() -> None:
        show_scores(document)
        typer.echo()
        _show_paper(paper, found)

    options.answer({**document, "paper": _paper_json(paper, found)}, show)


def _score(path: Path, against: Path, options: Evaluate) -> dict[str, Any]:
    """Return the scores of the images in each feature space."""
    extractors = list(dict.fromkeys(one.value for one in options.extractor or []))
    scores: dict[str, Callable[..., dict[str, Any]]]
    if is_statistics(against):
        options.refuse("on statistics, which have no splits", "split")
        if not has_array(against, adhoc.IMAGES):
            options.refuse(f"on statistics without images ({adhoc.IMAGES})", *LIMITS)
        files = [open_statistics(against, name) for name in extractors] or [open_statistics(against)]
        sample = adhoc.open_images(path)
        real = adhoc.images_in_statistics(against, sample)
        scores = {one.spec.name: partial(adhoc.score_against_statistics, sample, one, real) for one in files}
    else:
        pair = adhoc.open_inputs(path, against, options.split)
        names = extractors or [default_extractor(pair.real.images.shape[1:3])]
        scores = {name: partial(adhoc.score_images, pair) for name in names}
    sections = _sections(list(scores), options)
    for section in sections[1:]:  # missing weights are reported before any work
        space_extractor(section.spaces[0])
    documents = []
    for section, score in zip(sections, scores.values(), strict=True):  # in sequence, to limit memory
        with progress("features" if len(scores) == 1 else section.extractor) as watch:
            documents.append(score(section=section, progress=watch))
    first, *further = documents
    if not further:
        return first
    spaces = {one["extractor"]: {key: one[key] for key in one if key not in SHARED} for one in further}
    return {**first, "spaces": spaces}


def _sections(names: list[str], options: Evaluate) -> list[EvaluateConfig]:
    """Return the section of each extractor; UsageError if the file of weights fits several networks."""
    takes = [name for name in names if extractor_spec(name).weights.url] or names[:1]
    if options.weights is not None and len({extractor_spec(name).weights for name in takes}) > 1:
        raise UsageError(f"--weights is a file of one network: score {' and '.join(takes)} one by one")
    shared = options.given("batch_size", *LIMITS, "feature_likelihood")
    weights = options.given(*WEIGHTS)
    given = ({"extractor": name, **shared, **(weights if name in takes else {})} for name in names)
    return [validate(EvaluateConfig, values, "diffctl evaluate") for values in given]


def _paper_json(paper: papers.Paper, found: Sequence[papers.FigureComparison]) -> dict[str, Any]:
    about = {"title": paper.title, "source": paper.source, "note": paper.note}
    return {**about, "figures": [one.as_json() for one in found]}


def _show_paper(paper: papers.Paper, found: Sequence[papers.FigureComparison]) -> None:
    """Print a row for each score; differences that all rows share are printed once below."""
    alike = papers.shared_differences([one.differences for one in found])
    rows = []
    for one in found:
        here = "" if one.here is None else f"{one.here:.5g}"
        published = one.figure.name, one.figure.where, one.figure.metric, f"{one.figure.value:g}"
        rows.append((*published, here, one.cell or "", one.verdict(alike)))
    print_table(("published", "where", "score", "value", "here", "cell", "comparable"), rows)
    if alike:
        typer.echo(f"none is comparable: the paper has {', '.join(map(str, alike))}")
    typer.echo(f"{paper.title}, {paper.source}" + (f": {paper.note}" if paper.note else ""))
