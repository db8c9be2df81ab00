"""The summary of a run as a Prefect artifact: scores, the gate's decision, images, links."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.choice.selection import describe_disagreement, describe_selection
from diffusion.images.pictures import png_bytes, sheet
from diffusion.images.store import open_store
from diffusion.layout import REPORT, SAMPLES, SCORES
from diffusion.protocol.scores_document import ScoresDocument, read_scores
from diffusion.report.formatting import markdown_table, real_label
from diffusion.report.sample_pictures import data_uri
from diffusion.system.checksums import JsonObject
from diffusion.system.errors import DiffctlError
from flows.output_relay import echo
from flows.prefect_server.local_servers import mlflow_page
from tracking.keys import REPORT_FOLDER
from tracking.mlflow_pages import GAP, cells_table, run_link, version_link
from tracking.registry.registered_models import RegisteredVersion, find_registered
from tracking.runs.run_lookup import find_run, read_identity
from tracking.store import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

KEY = "scores"
TILES, COLUMNS = 32, 8  # images of the best cell, and per row
NO_SCORE = ("_low", "_high", "_std")  # suffixes of values that belong to a score
MAX_PNG = 100_000  # bytes of the picture in the artifact


async def publish_markdown(make: Callable[[], str], description: str) -> None:
    """Publish the Markdown that `make` returns on the flow run's page; a failure prints a message."""
    from prefect.artifacts import acreate_markdown_artifact

    try:
        await acreate_markdown_artifact(make(), key=KEY, description=description)
    except Exception as error:
        echo(f"the page in Prefect has no summary: {error}\n")


async def publish_summary(decision: str) -> None:
    """Publish the pipeline's scores and the registry's decision."""
    await publish_markdown(
        lambda: sweep_markdown(read_scores(SCORES), SAMPLES, links_of_pipeline()), decision
    )


def sweep_markdown(document: ScoresDocument, samples: Path, links: Iterator[str]) -> str:
    """Return Markdown: a row per cell with the best one first, its images, links unless they fail."""
    best = f"Best: {describe_selection(document.best)}"
    parts = [best, describe_disagreement(document), cells_table(document)]
    with suppress(DiffctlError, OSError):  # no images
        png = png_bytes(sheet(open_store(samples / document.best.cell).images[:TILES], COLUMNS))
        if len(png) <= MAX_PNG:
            parts.append(f"![images of {document.best.cell}]({data_uri(png)})")
    with suppress(DiffctlError):  # MLflow may be unavailable
        parts.append("\n".join(f"- {line}" for line in links))
    return "\n\n".join(filter(None, parts)) + "\n"


def evaluation_markdown(values: JsonObject) -> str:
    """Return Markdown for the scores of `diffctl evaluate`: a row per score with its interval."""
    scores, reference = values["scores"], values["reference"]
    floor = reference.get("floor", {})
    rows = []
    for name, value in scores.items():
        if not name.endswith(NO_SCORE):
            ends = [f"{scores[f'{name}{end}']:.4g}" for end in ("_low", "_high") if f"{name}{end}" in scores]
            real = f"{floor[name]:.4g}" if name in floor else ""
            rows.append([name, f"{value:.4g}", " to ".join(ends), real])
    table = markdown_table(["score", "value", "interval", real_label(floor)], rows, GAP)
    images = f"{values['images']['count']:,} images of {values['images']['path']}"
    title = f"{images} against {reference['name']}, extractor {values['extractor']}"
    return f"{title}\n\n{table}\n"


def links_of_pipeline() -> Iterator[str]:
    """Yield links to the run, the registered version and the report."""
    run = find_run(read_identity().key)
    yield from links_of_model(run, find_registered(read_scores(SCORES)))
    if page := mlflow_page(tracking_uri()):
        report = f"{REPORT_FOLDER}/index.html"
        yield f"[report]({run_link(page, run.info.experiment_id, run.info.run_id, artifact=report)})"
    yield f"report: {(REPORT / 'index.html').absolute()}"


def links_of_model(run: "Run", version: RegisteredVersion | None) -> Iterator[str]:
    """Yield links to the run of a model and to its registered version."""
    page = mlflow_page(tracking_uri())
    if page:
        link = run_link(page, run.info.experiment_id, run.info.run_id)
        yield f"[run {run.info.run_name} in MLflow]({link})"
    else:
        yield f"run {run.info.run_name} in MLflow (`diffctl up` or `diffctl ui` shows it)"
    if version is not None:
        words = f"{version.name} version {version.version}{', the champion' * version.is_champion}"
        yield f"[{words}]({version_link(page, version.name, version.version)})" if page else words
