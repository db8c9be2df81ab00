"""The headline of the report, and its tables: scores of every cell, the Pareto front and the protocol."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusion.choice.confidence import describe_comparison, errors_of, gap
from diffusion.choice.ranking import leader
from diffusion.choice.selection import describe_disagreement, describe_optimism
from diffusion.protocol.card import SHARES, Card
from diffusion.protocol.grid import cell_order, describe_cell
from diffusion.protocol.option_tables import ALL_OPTIONS, AXES
from diffusion.protocol.options import format_value
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.report.formatting import (
    column_places,
    half_width,
    is_tied,
    number,
    real_label,
    score_name,
    short_names,
)

PROTOCOL = {
    "Samples": " ".join(("num_images", "model_sha256", *ALL_OPTIONS, "precision")),
    "Reference": (
        "data image_size reference_split reference_count reference_digest "
        "heldout_split heldout_count heldout_digest statistics_name statistics_sha256 statistics_source"
    ),
    "Scores": (
        "extractor weights_sha256 resize feature_dtype kid_subset_size kid_subsets is_splits subset_seed "
        "prc_neighbour coverage_neighbour prc_images prc_reference_images"
    ),
    "Versions": (
        "sampling_version sampling_torch sampling_plugins evaluation extractor_plugins torch torch_fidelity"
    ),
}
FAR_RECALL = 0.2  # of the recall of real images, or of 1: samples with less leave out most of the data


def score_table(document: ScoresDocument, *, distances_only: bool = False) -> dict[str, Any]:
    """Return axes, columns and rows of text, real images first; the best values and those tied are marked."""
    columns, cells, spec = score_columns(document), document.cells, document.spec
    if distances_only:
        columns = {name: heading for name, heading in columns.items() if name in (*spec.distances, "excess")}
    places = {column: column_places(document, column) for column in columns}
    leaders = {column: _leader(cells.values(), column) for column in columns}
    chosen, before = document.best.cell, None
    rows: list[dict[str, Any]] = []
    if floor := document.reference.floor:
        real = {**floor, "excess": 0.0}
        entries = [_entry(real, column, places[column]) for column in columns]
        rows.append({"label": real_label(floor), "entries": entries, "real": True})
    axes = [axis for axis in AXES if any(axis in cell.axes for cell in cells.values())]
    for name, cell in sorted(cells.items(), key=lambda item: cell_order(item[1].axes)):
        rows.append(
            {
                "axes": [_text(cell.axes.get(axis)) for axis in axes],
                "first": cell.steps != before,
                "best": name == chosen,
                "entries": [
                    _entry(cell.scores, column, places[column], **_marks(cell, column, places[column], best))
                    for column, best in leaders.items()
                ],
            }
        )
        before = cell.steps
    return {
        "axes": [ALL_OPTIONS[axis].label or axis for axis in axes],
        "columns": list(columns.values()),
        "rows": rows,
        "tied": any(entry["tied"] for row in rows for entry in row["entries"]),
        "how": describe_comparison(gap(cell, cells[chosen], spec.distance) for cell in cells.values()),
    }


def spaces_table(documents: Sequence[ScoresDocument]) -> dict[str, Any]:
    """Return one table with a group of columns for each space, with the best cell of each group."""
    tables = [score_table(document, distances_only=True) for document in documents]
    rows = [
        {
            **aligned[0],
            "groups": [{"entries": row["entries"], "best": row.get("best", False)} for row in aligned],
        }
        for aligned in zip(*(table["rows"] for table in tables), strict=True)
    ]
    return {
        "axes": tables[0]["axes"],
        "groups": [
            {"extractor": document.extractor, "columns": table["columns"], "how": table["how"]}
            for document, table in zip(documents, tables, strict=True)
        ],
        "rows": rows,
        "tied": any(table["tied"] for table in tables),
    }


def front_table(document: ScoresDocument) -> list[dict[str, Any]]:
    """Return the Pareto front by cost with the budgets for each cell; marked if tied with the cheaper one."""
    cells, front, metric = document.cells, document.front, document.front[0].metric
    places = column_places(document, metric)
    rows: list[dict[str, Any]] = []
    for place, choice in enumerate(front):
        cell, following = cells[choice.cell], front[place + 1].nfe if place + 1 < len(front) else None
        too_low = number(choice.optimism or 0.0, places)
        rows.append(
            {
                "nfe": choice.nfe,
                "cell": describe_cell(cell.axes),
                "budget": _budget(choice.nfe, following),
                "score": number(choice.value, places),
                "too_low": too_low if too_low.strip("0.,") else None,
                "half": half_width(cell, metric, places),
                "tied": place > 0 and is_tied(cell, cells[front[place - 1].cell], metric),
            }
        )
    return rows


def _budget(least: int, following: int | None) -> str:
    if following is None:
        return f"{least:,} and more"
    return f"{least:,}" if following == least + 1 else f"{least:,} to {following - 1:,}"


def score_columns(document: ScoresDocument) -> dict[str, str]:
    """Return the names and headings of the table's scores that some cell has."""
    spec = document.spec
    names = short_names(spec)
    columns = {
        spec.distance: names["distance"],
        "excess": "excess",
        spec.published: f"{names['distance']}, published",
        spec.kernel_distance: names["kernel"],
        **({spec.gaussian_distance: "CMMD"} if spec.gaussian_distance else {}),
        **{spec.named(share): share for share in SHARES},
        spec.named("fld"): "FLD",
        **dict.fromkeys(spec.results, names["score"]),
    }
    known = {name for cell in document.cells.values() for name in cell.scores}
    return {name: heading for name, heading in columns.items() if name in known or name == "excess"}


def protocol_table(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """Return the card's fields in groups, each with the common value or all values of the cells."""
    fields = {field for card in cards for field in card}
    groups = {title: [name for name in names.split() if name in fields] for title, names in PROTOCOL.items()}
    known = {name for names in groups.values() for name in names}
    groups["Other"] = sorted(fields - known)
    return [
        {"title": title, "fields": [{"name": name, "value": _values(cards, name)} for name in names]}
        for title, names in groups.items()
        if names
    ]


def _leader(cells: Iterable[CellScores], column: str) -> CellScores | None:
    """Return the cell with the best value of a score; None if it ranks nothing or one has no interval."""
    first, scored = leader(column), [cell for cell in cells if column in cell.scores]
    if not scored or first is None or any(errors_of(cell, column) is None for cell in scored):
        return None
    best: CellScores = first(scored, key=lambda cell: cell.scores[column])
    return best


def _entry(scores: Mapping[str, float], column: str, places: int, **marks: Any) -> dict[str, Any]:
    text = number(scores[column], places) if column in scores else "–"
    return {"text": text, "half": None, "best": False, "tied": False, **marks}


def _marks(cell: CellScores, column: str, places: int, best: CellScores | None) -> dict[str, Any]:
    """Return half the interval of an entry, and how it compares with the best of its column, if any."""
    if best is None or column not in cell.scores:
        return {}
    half = None if column == "excess" else half_width(cell, column, places)
    return {"half": half, "best": cell is best, "tied": cell is not best and is_tied(cell, best, column)}


def _values(cards: Sequence[Card], field: str) -> str:
    """Format the field's values of all cards, numbers in ascending order."""
    values = {_text(card.get(field)): card.get(field) for card in cards}
    if all(isinstance(value, int | float) for value in values.values()):
        return ", ".join(text for _, text in sorted((value, text) for text, value in values.items()))
    return ", ".join(values)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_value(value) if isinstance(value, float) else str(value)


def headline(document: ScoresDocument) -> str:
    """Return a sentence with the best cell, and the cheapest of the cells that are tied with it."""
    best, count = document.cells[document.best.cell], len(document.cells)
    if count == 1:
        return f"One cell was sampled: {describe_cell(best.axes)}."
    score, tied = score_name(document.spec, document.best.metric), tied_cells(document)
    if not tied:
        return f"Of {count} cells, {describe_cell(best.axes)} is the best by {score}."
    others = "one other is" if len(tied) == 1 else f"{len(tied)} others are"
    lowest = f"Of {count} cells, {describe_cell(best.axes)} has the lowest {score}"
    sentence = f"{lowest}, and {others} statistically tied with it"
    if tied[0].nfe >= best.nfe:
        return f"{sentence}."
    which = "" if len(tied) == 1 else "the cheapest is "
    cost = f"{tied[0].nfe:,} NFE per image instead of {best.nfe:,}"
    return f"{sentence}: {which}{describe_cell(tied[0].axes)}, for {cost}."


def tied_cells(document: ScoresDocument) -> list[CellScores]:
    """Return the cells that are statistically tied with the best one, the cheapest first."""
    best, metric = document.cells[document.best.cell], document.best.metric
    others = [cell for cell in document.cells.values() if cell is not best]
    tied = (cell for cell in others if is_tied(cell, best, metric))
    return sorted(tied, key=lambda cell: (cell.nfe, cell.scores[metric]))


def best_cell(document: ScoresDocument) -> dict[str, Any]:
    """Return the best cell and its scores as text, and the number of cells `tied` with it."""
    name, spec = document.best.cell, document.spec
    cell = document.cells[name]
    scores = cell.scores
    distance_places = column_places(document, spec.distance)
    kernel_places = column_places(document, spec.kernel_distance)
    words: dict[str, Any] = {
        "name": name,
        "cell": describe_cell(cell.axes),
        "by": score_name(spec, document.best.metric),
        "tied": len(tied_cells(document)),
        "distance": number(scores[spec.distance], distance_places),
        "kernel": number(scores[spec.kernel_distance], kernel_places),
        "kernel_half": half_width(cell, spec.kernel_distance, kernel_places),
        "distance_half": half_width(cell, spec.distance, distance_places),
        "num_images": f"{cell.num_images:,}",
        "too_low": describe_optimism(document.best),
        "disagreement": describe_disagreement(document),
    }
    if "floor" in scores:
        words["floor"] = number(scores["floor"], distance_places)
        words["excess"] = number(scores["excess"], distance_places)
    real = document.reference.floor
    for key, metric in {"limit": spec.limit, **{share: spec.named(share) for share in SHARES}}.items():
        if metric in scores:
            places = distance_places if key == "limit" else 2
            words[key] = number(scores[metric], places)
            words[f"{key}_real"] = number(real[metric], places) if metric in real else None
    if is_far(cell, real):
        words["far"] = True
    if "memorisation" in scores:
        words["memorisation"] = number(scores["memorisation"], 2)
        words["memorisation_std"] = number(scores["memorisation_std"], 2)
    return words


def is_far(cell: CellScores, real: Mapping[str, float]) -> bool:
    """Return whether the samples are far from the data: an excess above the floor, and hardly any recall."""
    scores, recall = cell.scores, cell.spec.named("recall")
    if "excess" not in scores or recall not in scores:
        return False
    return scores["excess"] > scores["floor"] and scores[recall] < FAR_RECALL * real.get(recall, 1.0)
