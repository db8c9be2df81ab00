"""The content of MLflow's pages: links, and descriptions in Markdown.

A description that a user edited in MLflow is kept: ours is recognised by its digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from diffusion.choice.ranking import is_auxiliary
from diffusion.choice.selection import describe_selection
from diffusion.layout import SAMPLES
from diffusion.protocol.grid import RESERVED, Cell, cell_order, describe_cell
from diffusion.protocol.scores_document import CellScores, ScoresDocument
from diffusion.report.formatting import describe_model, escape_markdown, markdown_table
from tracking.keys import KEY, REGISTRY_EXPERIMENT, experiment_name

if TYPE_CHECKING:
    from diffusion.model.model_file import Artefact

NOTE = "mlflow.note.content"  # MLflow's own tag: its UI shows it as the description
NOTE_DIGEST = "diffctl.note"  # digest of the description as diffctl wrote it
PRIMARY_METRIC = "mlflow.experiment.primaryMetric.name"  # MLflow's tag of an experiment

LOCAL = "http://127.0.0.1:5000"  # default address of `diffctl ui`

MONTAGE = "montage.png"
MAX_CHARACTERS = 5000  # of a description in MLflow's database
MAX_ROWS = 20  # of a table of cells
GAP = "&emsp;"  # MLflow's page drops the alignment and leaves no space between columns


def experiment_link(address: str, experiment_id: str) -> str:
    """Return the page of an experiment's trainings, without their cells, with charts."""
    query = {"compareRunsMode": "CHART", "searchFilter": f"tags.`{KEY}` LIKE '%'"}
    return _link(address, f"experiments/{experiment_id}/runs", **query)


def run_link(address: str, experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Return the page of a run, or of one of its artifacts."""
    place = f"{run_id}/artifacts/{artifact}" if artifact else run_id
    return _link(address, f"experiments/{experiment_id}/runs/{place}")


def comparison_link(address: str, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """Return MLflow's own page that compares params, metrics and pictures of runs."""
    experiments = json.dumps(list(dict.fromkeys(experiment_ids)))
    return _link(address, "compare-runs", runs=json.dumps(list(run_ids)), experiments=experiments)


def version_link(address: str, name: str, number: int) -> str:
    """Return the page of a model version."""
    return _link(address, f"models/{quote(name, safe='')}/versions/{number}")


def _link(address: str, path: str, **query: str) -> str:
    """Return a page's address; without its `workflowType` MLflow 3 opens pages for language models."""
    query = {**query, "workflowType": "machine_learning"}  # the page compare-runs needs `runs` first
    return f"{address.rstrip('/')}/#/{path}?{urlencode(query)}"


def note_tags(text: str) -> dict[str, str]:
    """Return the tags that make a text the description of a run or an experiment."""
    return {NOTE: text, NOTE_DIGEST: hashlib.sha256(text.encode()).hexdigest()[:16]}


def changed_note(text: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags to set for a new description; none if it is unchanged or a user edited it."""
    present = tags.get(NOTE, "")
    is_ours = not present.strip() or note_tags(present)[NOTE_DIGEST] == tags.get(NOTE_DIGEST)
    return note_tags(text) if is_ours and present != text else {}


def experiment_note(name: str) -> str:
    """Describe an experiment and its use."""
    if name == REGISTRY_EXPERIMENT:
        return (
            "The champions of each registered model: one run per model. Its parameters are their moves. "
            "`diffctl history` reads them.\n\n**Do not delete anything here.**\n"
        )
    return (
        f"Diffusion models of *{name.removeprefix(experiment_name(''))}*, one run each. Child runs are the "
        "cells of the sweep over sampling steps and η.\n\n"
        "- `best/…` are the scores of the best cell; `…/eta_…` are curves over the number of steps.\n"
        "- `diffctl compare RUN RUN` compares scores of one protocol, and marks gaps that may be chance.\n"
        f"- The best model is `champion` of the registered model `{name}`.\n"
    )


def training_note(params: Mapping[str, str], fingerprint: str) -> str:
    """Describe a training by the values of params.yaml, given by dotted names."""
    kind = "A class-conditional" if params.get("model.class_cond") == "True" else "An unconditional"
    names = "data.name", "train.steps", "train.batch_size", "model.name", "process.schedule", "train.seed"
    data, steps, batch, network, schedule, seed = (params.get(name, "?") for name in names)
    return (
        f"{kind} diffusion model of *{data}*: {steps} steps of {batch} images, network {network}, "
        f"schedule {schedule}, seed {seed}.\n\n"
        f"Sample it:\n\n    diffctl sample --run-id {fingerprint} --num 16 --out samples.png\n"
    )


def scores_note(document: ScoresDocument) -> str:
    """Describe the scores of a training: its best cell, a table of all, and the reference."""
    best = describe_selection(document.best)
    return f"\nBest: {best}.\n\n{cells_table(document)}\n\n{_reference_text(document)}\n"


def describe_version(
    artefact: "Artefact", document: ScoresDocument, run_id: str, folder: str, with_montage: bool
) -> str:
    """Describe a model version: training, scores, samples, protocol and use.

    `folder` has the model and its montage among the run's artifacts: MLflow's page drops data: addresses.
    """
    address = urlencode({"path": f"{folder}/{MONTAGE}", "run_uuid": run_id})
    parts = [
        describe_model(artefact),
        f"Best: {describe_selection(document.best)}.",
        *([f"![samples](get-artifact?{address})"] if with_montage else []),
        cells_table(document),
        _reference_text(document),
        "Sample it:\n\n"
        f"    diffctl sample --run-id {run_id} --num 16 --out samples.png\n"
        "    diffctl sample --champion --num 16 --out samples.png    # while it is champion",
    ]
    return "\n\n".join(parts)[:MAX_CHARACTERS]


def samples_montage(document: ScoresDocument) -> bytes | None:
    """Return the best cell's first images as a PNG; None if its samples are absent or of another model."""
    from diffusion.images.pictures import png_bytes  # numpy and matplotlib
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import CellMeta
    from diffusion.report.sample_pictures import tile

    cell = document.cells[document.best.cell]
    width = cell.card.get("ema")
    axes = {**cell.axes, "ema": width} if isinstance(width, float) else cell.axes
    folder = SAMPLES / Cell(**axes).name
    if not folder.is_dir():
        return None
    store, wanted = open_store(folder, CellMeta), cell.card.get("model_sha256")
    return png_bytes(tile(store)) if store.meta["card"].get("model_sha256") == wanted else None


def cells_table(document: ScoresDocument) -> str:
    """Return the cells' scores in Markdown, the best first and in bold: of a large sweep the fewest steps."""
    spec, best = document.spec, document.cells[document.best.cell]
    names = [spec.distance, "excess", spec.kernel_distance]
    names = [name for name in names if all(name in cell.scores for cell in document.cells.values())]
    cells = sorted(document.cells.values(), key=lambda cell: (cell is not best, cell_order(cell.axes)))
    rows = []
    for cell in cells[:MAX_ROWS]:
        mark = "**" * (cell is best)
        values = (f"{cell.scores[metric]:.4g}" for metric in names)
        rows.append([f"{mark}{escape_markdown(describe_cell(cell.axes))}{mark}", *values])
    left = len(cells) - len(rows)
    text = f"\n\n{left} more cells are in its scores.json." if left else ""
    return markdown_table(["cell", *names], rows, GAP) + text


def _reference_text(document: ScoresDocument) -> str:
    reference, cell = document.reference, document.cells[document.best.cell]
    return (
        f"{cell.num_images:,} images a cell against {reference.reference_count:,} "
        f"of {escape_markdown(reference.name)} ({escape_markdown(reference.reference_split)}), "
        f"extractor {document.spec.name}. The protocol card of each cell is in scores.json."
    )


def series_name(cell: CellScores) -> str:
    """Return all axes of a cell but the steps, as a part of a metric's key: no plus sign, no colon."""
    values = {axis: value for axis, value in cell.axes.items() if axis != "steps"}
    name = "-".join(f"{axis}_{value}" for axis, value in values.items())
    return re.sub(RESERVED, "_", name).replace("+", "p")


def best_scores(document: ScoresDocument) -> dict[str, float]:
    """Return the best cell's scores as metrics of the training's run."""
    best = document.cells[document.best.cell]
    return {f"best/{name}": value for name, value in best.all_scores.items() if not is_auxiliary(name)}
