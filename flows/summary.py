"""What a run came to, as an artifact on its page in Prefect: scores, the gate's decision, images, links."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from diffusion.choice.chosen import told
from diffusion.layout import REPORT, RUN, SAMPLES, SCORES
from diffusion.protocol.grid import order, shown
from diffusion.protocol.scores import CellScores, ScoresDocument, read_scores
from diffusion.system.errors import DiffctlError
from flows.local import mlflow_page
from flows.terminal import say
from tracking.links import model_link, run_link
from tracking.markdown import score_names, score_table
from tracking.names import REPORT_FOLDER

KEY = "scores"
TILES, COLUMNS = 32, 8  # images of the best cell, and a row of them
MOST_PNG = 100_000  # bytes of the picture that goes into the artifact


async def publish_summary(decision: str) -> None:
    """Put the summary of the project in this folder on the page of the flow run that this is called in.

    It is no part of the work: what goes wrong is said, and the run is as it was.
    """
    from prefect.artifacts import acreate_markdown_artifact

    try:
        markdown = summary(read_scores(SCORES), SAMPLES)
        await acreate_markdown_artifact(markdown, key=KEY, description=decision)
    except Exception as error:
        say(f"the page in Prefect has no summary: {error}\n")


def summary(document: ScoresDocument, samples: Path = SAMPLES) -> str:
    """Markdown: a row a cell with the best one first, images of that one, links."""
    parts = [f"Best: {told(document.best)}", _table(document)]
    parts += _picture(samples / document.best.cell, document.best.cell)
    with suppress(DiffctlError):  # MLflow may be away by now
        parts.append("\n".join(f"- {line}" for line in _links()))
    return "\n\n".join(parts) + "\n"


def _table(document: ScoresDocument) -> str:
    winner, names = document.cells[document.best.cell], score_names(document)
    cells = sorted(document.cells.values(), key=lambda cell: (cell is not winner, order(cell.axes)))
    rows = ([_spoken(cell), *(f"{cell.scores[name]:.4g}" for name in names)] for cell in cells)
    return score_table(names, rows)


def _spoken(cell: CellScores) -> str:
    return ", ".join(f"{axis} {shown(value)}" for axis, value in cell.axes.items())


def _picture(folder: Path, name: str) -> Iterator[str]:
    """A sheet of the cell's first images, where they are here and small enough."""
    from diffusion.images.pictures import png_bytes, sheet
    from diffusion.images.store import open_store
    from diffusion.report.samples import data_uri

    with suppress(DiffctlError, OSError):
        png = png_bytes(sheet(open_store(folder).images[:TILES], COLUMNS))
        if len(png) <= MOST_PNG:
            yield f"![images of {name}]({data_uri(png)})"


def _links() -> Iterator[str]:
    """Where the run, the registered model and the report are."""
    from tracking.lookup import read_identity
    from tracking.names import model_name
    from tracking.runs import find_training
    from tracking.store import tracking_uri

    run = find_training(read_identity(RUN))
    if page := mlflow_page(tracking_uri()):
        place = page, run.info.experiment_id, run.info.run_id
        name = model_name(read_scores(SCORES).reference.name)
        yield f"[run {run.info.run_name} in MLflow]({run_link(*place)})"
        yield f"[the registered model {name}]({model_link(page, name)})"
        yield f"[report]({run_link(*place, artifact=f'{REPORT_FOLDER}/index.html')})"
    else:
        yield f"run {run.info.run_name} in MLflow (`diffctl up` or `diffctl ui` shows it)"
    yield f"report: {(REPORT / 'index.html').absolute()}"
