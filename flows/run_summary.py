"""What a run came to, as an artifact on its page in Prefect: scores, the gate's decision, images, links."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.selection import describe_selection
from diffusion.layout import REPORT, RUN, SAMPLES, SCORES
from diffusion.protocol.grid import cell_order
from diffusion.protocol.option_values import format_value
from diffusion.protocol.scores import CellScores
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import JsonObject
from flows.output_relay import echo
from flows.prefect_server.local_servers import mlflow_page
from tracking.keys import REPORT_FOLDER
from tracking.mlflow_pages import run_link, score_names, score_table, version_link

if TYPE_CHECKING:
    from mlflow.entities import Run

KEY = "scores"
TILES, COLUMNS = 32, 8  # images of the best cell, and a row of them
NO_SCORE = ("_low", "_high", "_std")  # what stands beside a score under a name of its own
MAX_PNG = 100_000  # bytes of the picture that goes into the artifact


Links = Callable[[], Iterator[str]]
"""Gives a line a place to look at; what is left is left out at a DiffctlError, as where MLflow is away."""


async def publish_markdown(make: Callable[[], str], description: str) -> None:
    """Put the Markdown that `make` gives on the page of the flow run that this is called in.

    It is no part of the work: what goes wrong is said, and the run is as it was.
    """
    from prefect.artifacts import acreate_markdown_artifact

    try:
        await acreate_markdown_artifact(make(), key=KEY, description=description)
    except Exception as error:
        echo(f"the page in Prefect has no summary: {error}\n")


async def publish_summary(decision: str) -> None:
    """Publish what the pipeline in this folder came to, and what the registry made of it."""
    await publish_markdown(lambda: sweep_markdown(read_scores(SCORES), SAMPLES, links_of_pipeline), decision)


def sweep_markdown(document: ScoresDocument, samples: Path, links: Links) -> str:
    """Markdown: a row a cell with the best one first, images of that one, links."""
    parts = [f"Best: {describe_selection(document.best)}", _table(document)]
    parts += _picture(samples / document.best.cell, document.best.cell)
    parts += _listed(links)
    return "\n\n".join(parts) + "\n"


def evaluation_markdown(values: JsonObject) -> str:
    """Markdown of what `diffctl evaluate` writes: what is against what, a row a score with its interval."""
    scores, reference = values["scores"], values["reference"]
    floor = reference.get("floor", {})
    lines = [["score", "value", "interval", "real, held out"], ["---", "---:", "---:", "---:"]]
    for name, value in scores.items():
        if not name.endswith(NO_SCORE):
            ends = [f"{scores[f'{name}{end}']:.4g}" for end in ("_low", "_high") if f"{name}{end}" in scores]
            real = f"{floor[name]:.4g}" if name in floor else ""
            lines.append([name, f"{value:.4g}", " to ".join(ends), real])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    images = f"{values['images']['count']:,} images of {values['images']['path']}"
    said = f"{images} against {reference['name']}, extractor {values['extractor']}"
    return f"{said}\n\n{table}\n"


def _listed(links: Links) -> Iterator[str]:
    """The links as a list; none where there are none."""
    lines: list[str] = []
    with suppress(DiffctlError):  # MLflow may be away by now
        lines.extend(f"- {line}" for line in links())
    if lines:
        yield "\n".join(lines)


def _table(document: ScoresDocument) -> str:
    winner, names = document.cells[document.best.cell], score_names(document)
    cells = sorted(document.cells.values(), key=lambda cell: (cell is not winner, cell_order(cell.axes)))
    rows = ([_spoken(cell), *(f"{cell.scores[name]:.4g}" for name in names)] for cell in cells)
    return score_table(names, rows)


def _spoken(cell: CellScores) -> str:
    return ", ".join(f"{axis} {format_value(value)}" for axis, value in cell.axes.items())


def _picture(folder: Path, name: str) -> Iterator[str]:
    """A sheet of the cell's first images, where they are here and small enough."""
    from diffusion.images.pictures import png_bytes, sheet
    from diffusion.images.store import open_store
    from diffusion.report.sample_pictures import data_uri

    with suppress(DiffctlError, OSError):
        png = png_bytes(sheet(open_store(folder).images[:TILES], COLUMNS))
        if len(png) <= MAX_PNG:
            yield f"![images of {name}]({data_uri(png)})"


def links_of_pipeline() -> Iterator[str]:
    """Where the run, the registered version and the report are."""
    from tracking.runs.run_lookup import read_identity
    from tracking.runs.scored_runs import find_training_run
    from tracking.store import tracking_uri

    run = find_training_run(read_identity(RUN))
    yield from links_of_model(run, read_scores(SCORES))
    if page := mlflow_page(tracking_uri()):
        report = f"{REPORT_FOLDER}/index.html"
        yield f"[report]({run_link(page, run.info.experiment_id, run.info.run_id, artifact=report)})"
    yield f"report: {(REPORT / 'index.html').absolute()}"


def links_of_model(run: "Run", document: ScoresDocument) -> Iterator[str]:
    """Where the run of a model is that has these scores, and the version that it is registered as."""
    from tracking.keys import model_name
    from tracking.registry.registered_models import find_registered
    from tracking.runs.scored_runs import data_name
    from tracking.store import tracking_uri

    page, version = mlflow_page(tracking_uri()), find_registered(document)
    if page:
        link = run_link(page, run.info.experiment_id, run.info.run_id)
        yield f"[run {run.info.run_name} in MLflow]({link})"
    else:
        yield f"run {run.info.run_name} in MLflow (`diffctl up` or `diffctl ui` shows it)"
    if version is not None:
        name = model_name(data_name(document))
        words = f"{name} version {version.version}{', the champion' * version.is_champion}"
        yield f"[{words}]({version_link(page, name, version.version)})" if page else words
