"""How MLflow's UI shows an experiment: the columns of its table, the charts and pictures beside it.

The UI reads a shared view, JSON, from a tag of the experiment, by the key that the address names. The forms
of charts are those of MLflow 3; a later UI that knows others shows its own.
"""

import json
from typing import Any

from diffusion.choice.ranking import is_auxiliary
from diffusion.protocol.scores import CellScores, ScoresDocument
from tracking.keys import KEY
from tracking.pages.links import VIEW

PRIMARY = "mlflow.experiment.primaryMetric.name"
SHARED = f"mlflow.sharedViewState.{VIEW}"
ATTRIBUTES = ("Duration", "Version")
PARAMS = ("train.steps", "train.lr.rate", "model.channels", "train.seed")
RUNS = 20  # in a chart at most

Chart = dict[str, Any]


def series_name(cell: CellScores) -> str:
    """All of a cell's axes but the steps, as a part of a metric's key: no plus sign, no colon."""
    values = {axis: value for axis, value in cell.axes.items() if axis != "steps"}
    return "-".join(f"{axis}_{value}" for axis, value in values.items()).replace("+", "p").replace(":", "_")


def best_scores(document: ScoresDocument) -> dict[str, float]:
    """The best cell's scores under the names that a training's run has them by."""
    best = document.cells[document.best.cell]
    return {f"best/{name}": value for name, value in best.all_scores.items() if not is_auxiliary(name)}


def view_tags(document: ScoresDocument) -> dict[str, str]:
    """The experiment's tags: the score that ranks first; trainings by scores, curves and samples."""
    primary = f"best/{document.best.metric}"
    metrics = dict.fromkeys([primary, f"best/{document.spec.distance}", "best/steps", "best/eta"])
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"params.`{name}`" for name in PARAMS]
    columns += [f"attributes.`{name}`" for name in ATTRIBUTES]
    sections = _sections(document, primary)
    state = {
        "searchFilter": f"tags.`{KEY}` LIKE '%'",  # trainings without their cells
        "orderByKey": f"metrics.`{primary}`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "compareRunSections": [_section(name) for name in sections],
        "compareRunCharts": [chart for charts in sections.values() for chart in charts],
        "isAccordionReordered": True,
    }
    return {PRIMARY: primary, SHARED: json.dumps(state, sort_keys=True)}


def _sections(document: ScoresDocument, primary: str) -> dict[str, list[Chart]]:
    """The charts by the name of their section."""
    lines = list(dict.fromkeys(map(series_name, document.cells.values())))
    best = document.cells[document.best.cell]
    curves = [f"{document.spec.distance}/{line}" for line in lines]
    scores = [_bars("Scores", primary), _lines("Scores", f"{document.spec.distance} over steps", curves)]
    samples = _chart("Samples", "IMAGE", imageKeys=[f"samples-{series_name(best)}"], step=best.steps)
    training = [_lines("Training", name, [name]) for name in ("loss", "grad_norm")]
    return {"Scores": scores, "Samples": [samples | {"showRunParams": False}], "Training": training}


def _section(name: str) -> Chart:
    shown = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": _identity(name), "name": name, **shown}


def _bars(section: str, metric: str) -> Chart:
    return _chart(section, "BAR", metricKey=metric)


def _lines(section: str, name: str, metrics: list[str]) -> Chart:
    axes = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "scaleType": "linear", "lineSmoothness": 0}
    return _chart(section, "LINE", displayName=name, metricKey=metrics[0], selectedMetricKeys=metrics, **axes)


def _chart(section: str, kind: str, **values: Any) -> Chart:
    told = "-".join([section, *(str(value) for value in values.values())])
    shown = {"runsCountToCompare": RUNS, "deleted": False, "isGenerated": False}
    return {"type": kind, "uuid": _identity(told), "metricSectionId": _identity(section), **shown, **values}


def _identity(text: str) -> str:
    return f"diffctl-{text}"
