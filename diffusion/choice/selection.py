"""Selection of cells: the best one, the front of score against NFE, their bias; settings of a cell."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.choice.confidence import errors_of, gap, share_noise
from diffusion.choice.ranking import Cells, best_cell, front_metric, is_auxiliary
from diffusion.protocol.card import Card
from diffusion.protocol.grid import sampling_version
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.option_tables import MODEL_AXES, SAMPLING_OPTIONS
from diffusion.protocol.options import split_list
from diffusion.protocol.scores_document import (
    CellScores,
    FrontCell,
    ImageScores,
    ScoresDocument,
    SelectedCell,
)
from diffusion.protocol.settings import SampleSettings, default_spacing
from diffusion.protocol.spacing import LEARNED
from diffusion.system.errors import UsageError
from diffusion.system.files import write_json
from diffusion.system.section import Section, validate

DRAWS = 4000
STEP = 0.5  # how far the scores that choose are moved, in standard deviations of theirs: nearer costs draws
SEED = 2020
SELECTED = {"best", "front", "cells"}  # fields of a document that depend on its cells
SPACE_FIELDS = {"extractor", "reference", "spaces", *SELECTED}  # that differ between extractors


def recommended(scores: ScoresDocument, budget: int) -> FrontCell | None:
    """Return the best cell for at most `budget` NFE per image; None if the cheapest costs more."""
    return min((one for one in scores.front if one.nfe <= budget), key=lambda one: one.value, default=None)


def select(cells: dict[str, CellScores], **shared: Any) -> ScoresDocument:
    """Return the document of these cells and shared values, with the best cell and the front."""
    return ScoresDocument(**shared, best=select_best(cells), front=select_front(cells), cells=cells)


def select_best(cells: Cells) -> SelectedCell:
    """Return the best cell. Its `optimism` is the bias of its score by selection, None without errors."""
    name, metric, value = best_cell(cells)
    too_low = optimism(list(cells.values()), metric)
    return SelectedCell(cell=name, metric=metric, value=value, of=len(cells), optimism=too_low)


def select_front(cells: Cells) -> list[FrontCell]:
    """Return the cells that no other beats in NFE and the score that ranks, with the bias of each selection.

    The cheapest is first. The last one has the score of the best cell.
    """
    front: list[FrontCell] = []
    points = [(cell.nfe, cell.scores[front_metric(cell)], name) for name, cell in cells.items()]
    for nfe, value, name in sorted(points, key=lambda point: point[:2]):
        if not front or value < front[-1].value:
            affordable = [cell for cell in cells.values() if cell.nfe <= nfe]
            metric, of = front_metric(cells[name]), len(affordable)
            too_low = optimism(affordable, metric)
            front.append(FrontCell(cell=name, nfe=nfe, metric=metric, value=value, of=of, optimism=too_low))
    return front


def describe_selection(chosen: SelectedCell) -> str:
    """Return the selection in one line: the score, its cell, and the bias of selection."""
    aside = describe_optimism(chosen)
    return f"{chosen.metric} {chosen.value:.4g} at {chosen.cell}" + (f", {aside}" if aside else "")


def describe_optimism(chosen: SelectedCell) -> str:
    """Return the bias of selection as the end of a sentence about the score; empty without a bias."""
    if not chosen.optimism or chosen.of < 2:
        return ""
    return f"roughly {chosen.optimism:.1g} too low, as the least of {chosen.of}"


def describe_disagreement(document: ScoresDocument) -> str:
    """Return which cell the Fréchet distance prefers to the best one (docs/evaluation.md); else empty."""
    best, cells, metric = document.best, document.cells, document.spec.distance
    other = min(cells, key=lambda name: (cells[name].scores[metric], name != best.cell))
    if other == best.cell or best.metric in ("excess", metric):
        return ""
    found = gap(cells[other], cells[best.cell], metric)
    chance = "" if found is None or found.is_significant else ", within chance"
    return f"{metric} prefers {other} to {best.cell}{chance}"


def optimism(cells: Sequence[ImageScores], metric: str) -> float | None:
    """Return by how much the least score of these cells is too low on average, ≥ 0; None without errors.

    Scores v with covariance V are split by noise δ ~ N(0, V): v + sδ and v − δ/s are independent (Rasines &
    Young 2023, 2102.02159; for s = 1 they are the scores of two halves of the images). The first select a
    cell, the second estimate its score without bias, so that v is too low by the mean of −δ/s. It is
    rough, since scores are skewed (docs/evaluation.md).
    """
    errors = [errors_of(cell, metric) for cell in cells]
    known = [one for one in errors if one is not None]
    if len(known) < len(cells):
        return None
    if len(cells) < 2:
        return 0.0
    values = np.array([cell.scores[metric] for cell in cells])
    draw = np.random.default_rng(SEED)
    if all(share_noise(cells[0], cell) for cell in cells[1:]):
        whole = np.stack(known).astype(np.float64)
        moved = draw.normal(size=(DRAWS, whole.shape[1])) @ whole.T
    else:
        moved = draw.normal(size=(DRAWS, len(cells))) * [float(np.linalg.norm(one)) for one in known]
    chosen = (values + STEP * moved).argmin(axis=1)
    return max(0.0, -float(moved[np.arange(DRAWS), chosen].mean()) / STEP)


def write_summary(path: Path, document: ScoresDocument) -> None:
    """Write metrics/summary.json, which `dvc metrics` shows: the best cell, the numbers of images and cells.

    Equal scores give equal bytes.
    """
    best = document.cells[document.best.cell]
    scores = {name: value for name, value in best.scores.items() if not is_auxiliary(name)}
    values = {"best": {**best.axes, "nfe": best.nfe, **scores}, "num_images": best.num_images}
    write_json(path, {**values, "cells": len(document.cells)})


def model_scores(document: ScoresDocument, sha256: str) -> ScoresDocument | None:
    """Return the scores of the model with this model_sha256 as if it alone had been sampled, or None."""
    own = [cell for cell in document.cells.values() if cell.card.get("model_sha256") == sha256]
    if not own:
        return None
    if len(own) == len(document.cells) and not any(axis in cell.axes for cell in own for axis in MODEL_AXES):
        return document
    plain = [CellScores(**_fields(cell, {*MODEL_AXES})) for cell in own]
    return select({cell.name: cell for cell in plain}, **_fields(document, SELECTED))


def best_model_scores(document: ScoresDocument) -> ScoresDocument:
    """Return the scores of the best cell's model."""
    best = document.cells[document.best.cell]
    return model_scores(document, str(best.card.get("model_sha256"))) or document


def scores_of_cells(
    document: ScoresDocument, keep: Callable[[CellScores, str], bool]
) -> ScoresDocument | None:
    """Return the scores of the cells that `keep`, given a cell and its name, accepts; None without any."""
    cells = {name: cell for name, cell in document.cells.items() if keep(cell, name)}
    return select(cells, **_fields(document, SELECTED)) if cells else None


def scores_in_space(document: ScoresDocument, name: str) -> ScoresDocument:
    """Return the document of one extractor alone, with its own selection; KeyError if it scored nothing."""
    if name == document.extractor:
        return document
    fields = ("scores", "card", "errors", "classes")
    cells = {
        place: CellScores(**cell.axes, **{field: getattr(cell.spaces[name], field) for field in fields})
        for place, cell in document.cells.items()
    }
    shared = _fields(document, SPACE_FIELDS)
    return select(cells, **shared, extractor=name, reference=document.spaces[name])


def all_spaces(document: ScoresDocument) -> list[ScoresDocument]:
    """Return the document of each extractor, the ranking one first."""
    return [scores_in_space(document, name) for name in (document.extractor, *document.spaces)]


def _fields(section: Section, without: set[str]) -> dict[str, Any]:
    """Return the fields that are set, without some."""
    return {field: getattr(section, field) for field in section.model_fields_set - without}


def budget_settings(
    scores: ScoresDocument, budget: int, seed: int, model: object, sha256: str
) -> SampleSettings:
    """Return the settings of the best cell for an NFE of at most `budget`, with another seed.

    UsageError if no cell is that cheap, if the scores are not those of `model` with the model_sha256
    `sha256`, or if other code sampled them.
    """
    own = scores_for(scores, model, sha256)
    choice, least = recommended(own, budget), own.front[0]
    if choice is None:
        found = f"no cell of the sweep takes {budget} network evaluations or fewer"
        raise UsageError(f"{found}: the cheapest is {least.cell} with {least.nfe}")
    return settings_of(own.cells[choice.cell], choice.cell, seed)


def best_card(scores: ScoresDocument) -> Card:
    """Return the card of the best cell."""
    return scores.cells[scores.best.cell].card


def best_settings(scores: ScoresDocument) -> SampleSettings:
    """Return the settings of the best cell, with seed 0."""
    return settings_of(scores.cells[scores.best.cell], scores.best.cell, 0)


def usual_settings(schedule: str, scores: ScoresDocument | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that options default to: those of the best cell, then of the model's process.

    `schedule` names the process. Settings of the best cell that do not fit chosen ones are left out: steps,
    times and noise of another sampler, and guidance by a rule that only its own sampler has; the options of
    another spacing or guidance rule; the number of steps next to timesteps, eta with a single step, and the
    `clip` of a rule that never clips. Learned times are those of the sweep for these steps.
    """
    usual = {"spacing": default_spacing(schedule)}
    usual |= {} if scores is None else _fitting_settings(best_settings(scores), chosen)
    own = chosen.get("spacing_options")
    return usual | learned_times(scores, {**usual, **chosen, "spacing_options": own})


def learned_times(scores: ScoresDocument | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of spacing learned, from the sweep, if chosen settings lack them; else no options.

    UsageError if the sweep has no cell with learned times and these steps.
    """
    is_learned = chosen.get("spacing") == LEARNED and chosen.get("timesteps") is None
    if scores is None or not is_learned or chosen.get("spacing_options"):
        return {}
    steps = chosen.get("steps", SAMPLING_OPTIONS["steps"].default)
    return {"spacing_options": learned_options(scores, steps)}


def learned_options(scores: ScoresDocument, steps: int) -> dict[str, Any]:
    """Return the options of spacing learned in the cell with these steps; UsageError without such a cell."""
    cells = {cell.steps: (cell, name) for name, cell in scores.cells.items() if has_learned_times(cell)}
    if steps not in cells:
        found = ", ".join(map(str, sorted(cells))) or "no number of"
        raise UsageError(f"the sweep has learned times for {found} steps, not {steps}: use another spacing")
    return settings_of(*cells[steps], 0).spacing_options


def has_learned_times(cell: CellScores) -> bool:
    """Return whether the images of a cell have learned times."""
    return cell.card.get("spacing") == LEARNED


def _fitting_settings(usual: SampleSettings, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the best cell that fit chosen ones."""
    other_sampler = chosen.get("sampler", usual.sampler) != usual.sampler
    timesteps = split_list(chosen.get("timesteps"))
    of_sampler = other_sampler and GUIDANCE_RULES[usual.rule].keeps_eps
    other_rule = of_sampler or chosen.get("guidance_rule", usual.guidance_rule) != usual.guidance_rule
    unguided = other_rule or not chosen.get("guidance", usual.guidance)
    conflicts = {
        **dict.fromkeys(("sampler", "sampler_options", "noise", "spacing", "timesteps"), other_sampler),
        "spacing_options": other_sampler or chosen.get("spacing", usual.spacing) != usual.spacing,
        **dict.fromkeys(("guidance", "guidance_rule"), of_sampler),  # the weight is of the rule's scale
        "guidance_rule_options": other_rule,
        "clip": bool(usual.guidance) and not GUIDANCE_RULES[usual.rule].clips and unguided,
        "steps": other_sampler or timesteps is not None or (usual.steps == 1 and bool(chosen.get("eta"))),
        "eta": other_sampler or chosen.get("steps", len(timesteps or ())) == 1,
    }
    return usual.model_dump(exclude={name for name, is_so in conflicts.items() if is_so})


def settings_of(cell: CellScores, name: str, seed: int) -> SampleSettings:
    """Return the settings in a cell's card, with another seed; UsageError if they are invalid."""
    known = {key: cell.card[key] for key in SampleSettings.model_fields if key in cell.card}
    return validate(SampleSettings, {**known, "seed": seed}, f"the card of {name} does not fit")


def scores_for(scores: ScoresDocument, model: object, sha256: str) -> ScoresDocument:
    """Return the model's part of the scores; UsageError without any, or if other code sampled the images."""
    own = model_scores(scores, sha256)
    if own is None:
        raise UsageError(f"the scores are of another model than {model}: `diffctl run` makes new ones")
    for cell in own.cells.values():
        if cell.card.get("sampling_version") != (wanted := sampling_version(cell.card)):
            found = f"the scores are not of sampling_version {wanted}, as this code samples"
            raise UsageError(f"{found}: `diffctl run` makes new ones")
    return own
