"""dvc.yaml's commands: one body a stage, a few lines over the library. They read params.yaml, no values.

A stage's `deps:` in dvc.yaml are folders of diffusion/ that hold what its body imports. What it imports from
cli/ and tracking/ only watches and records, so a change there makes nothing stale.
"""

import sys
from functools import partial
from typing import Annotated

import typer

from cli.shared.progress import progress

app = typer.Typer(help="A stage of the pipeline, as dvc.yaml runs it.", no_args_is_help=True)


def same_stage(name: str) -> list[str]:
    """The command that starts a further process of a stage's training."""
    return [sys.executable, "-m", "cli.entry", "stage", name]


@app.command()
def data() -> None:
    """Fetch the data set and prepare it: data/prepared."""
    from cli.stages.preflight import whole_config
    from cli.stages.preparing import show_prepared, watched_preparation
    from diffusion.data.data_config import DataConfig
    from diffusion.data.prepare import prepare
    from diffusion.layout import PREPARED
    from diffusion.system.params import load_section

    whole_config()
    with watched_preparation() as (show, downloading):
        prepare(load_section("data", DataConfig), PREPARED, show, downloading)
    show_prepared(PREPARED)


@app.command()
def reference() -> None:
    """Compute the reference's features and those of held-out real images: data/reference."""
    from cli.stages.preflight import preflight
    from diffusion.evaluate.evaluate_config import EvaluateConfig
    from diffusion.evaluate.features.reference_features import make_reference
    from diffusion.layout import PREPARED, REFERENCE
    from diffusion.system.params import load_section

    preflight("reference")
    with progress("reference") as show:
        make_reference(load_section("evaluate", EvaluateConfig), PREPARED, REFERENCE, show)


@app.command()
def train(
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the saved state and start again.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Go on although the code has changed.")] = False,
) -> None:
    """Train, or go on where the same training stopped: models/unet.safetensors."""
    from cli.stages.preflight import preflight
    from cli.stages.training import follow, say, tracked
    from diffusion.images.store import open_store
    from diffusion.images.store_meta import PreparedMeta
    from diffusion.layout import AVERAGES, LOSS_CURVE, MODEL, PREPARED, RUN, TRAIN_RUNS
    from diffusion.system.checksums import add_checksum
    from diffusion.system.devices import default_device
    from diffusion.system.files import write_json
    from diffusion.system.params import load_sections
    from diffusion.train.distributed.launch import is_follower
    from diffusion.train.plan import plan_training
    from diffusion.train.train_config import TrainSections
    from diffusion.train.trainer import Trainer, TrainPaths
    from flows.fetch_pretrained import fetch_pretrained

    sections = load_sections(TrainSections)
    fetch_pretrained(sections.train.start)
    config = None if is_follower() else preflight("train")
    store = open_store(PREPARED / "train", PreparedMeta)
    plan = plan_training(sections, store.meta, default_device())
    places = TrainPaths(TRAIN_RUNS, LOSS_CURVE, MODEL, averages=AVERAGES)
    trainer = Trainer(plan, store, places, same_stage("train"), partial(say, "train"))
    if config is None:
        return follow(trainer)
    training = trainer.lead(partial(tracked, plan, config), fresh=fresh, keep=keep)
    write_json(RUN, add_checksum(training.identity()))


@app.command()
def sample() -> None:
    """Sample every cell of the grid that an earlier run did not finish: samples/."""
    from cli.stages.preflight import preflight
    from diffusion.layout import MODEL, SAMPLES
    from diffusion.protocol.grid import grid
    from diffusion.protocol.sweep_config import SweepConfig
    from diffusion.sample.cell_images import drop_other_cells
    from diffusion.sample.config import SampleConfig
    from diffusion.sample.ema_models import EMAModelFiles
    from diffusion.system.params import load_section
    from flows.sweep_cells import run_sweep

    preflight("sample")
    section = load_section("sample", SampleConfig)
    cells = grid(section, load_section("sweep", SweepConfig))
    models = EMAModelFiles(MODEL, cells)
    drop_other_cells(SAMPLES, cells)
    run_sweep(section, cells, models, SAMPLES, progress)


@app.command()
def evaluate() -> None:
    """Score every cell against the reference: metrics/scores.json, and the curves in MLflow."""
    from cli.stages.preflight import preflight
    from diffusion.choice.summary import write_summary
    from diffusion.evaluate.evaluate_config import EvaluateConfig
    from diffusion.evaluate.sweep_scores import evaluate as score
    from diffusion.evaluate.sweep_scores import write_scores
    from diffusion.images.pictures import montage
    from diffusion.layout import PREPARED, REFERENCE, RUN, SAMPLES, SCORE_CURVES, SCORES, SUMMARY
    from diffusion.protocol.cells import open_cells
    from diffusion.protocol.sweep_config import SweepConfig
    from diffusion.sample.config import SampleConfig
    from diffusion.system.params import load_section
    from tracking.runs.cell_runs import log_samples
    from tracking.runs.scored_runs import log_scores

    preflight("evaluate")
    section = load_section("evaluate", EvaluateConfig)
    cells = open_cells(load_section("sample", SampleConfig), load_section("sweep", SweepConfig), SAMPLES)
    with progress("evaluate") as show:
        scores = score(cells, section, REFERENCE, show, PREPARED)
    write_scores(scores, SCORES, SCORE_CURVES)
    write_summary(SUMMARY, scores)
    run_id = log_scores(RUN, scores)
    log_samples(run_id, scores, {cell.name: montage(store.images) for cell, store in cells.items()})


@app.command()
def report() -> None:
    """Write the report of the sweep: report/index.html, one file."""
    from diffusion.config import load
    from diffusion.layout import LOSS_CURVE, PREPARED, REPORT, RUN, SAMPLES, SCORES
    from diffusion.report import write_report
    from tracking.runs.scored_runs import log_report

    page = write_report(load(), SAMPLES, SCORES, PREPARED, LOSS_CURVE, REPORT)
    log_report(RUN, REPORT)
    typer.echo(f"report: {page}")
