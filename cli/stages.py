"""dvc.yaml's commands: one body a stage, a few lines over the library. They read params.yaml, no values.

A stage's `deps:` in dvc.yaml are the modules of diffusion/ that its body imports, and theirs. What it
imports from cli/ and tracking/ only watches and records, so a change there makes nothing stale.
"""

import sys
from functools import partial
from typing import Annotated

import typer

from cli.progress import progress

app = typer.Typer(help="A stage of the pipeline, as dvc.yaml runs it.", no_args_is_help=True)

ANOTHER = [sys.executable, "-m", "cli.main", "stage", "train"]  # starts a further process of a training


@app.command()
def data() -> None:
    """Fetch the data set and prepare it: data/prepared."""
    from cli.preflight import whole_config
    from cli.preparing import show_prepared, watched_preparation
    from diffusion.data.config import DataConfig
    from diffusion.data.prepare import prepare
    from diffusion.layout import PREPARED
    from diffusion.params import load_section

    whole_config()
    with watched_preparation() as (show, downloading):
        prepare(load_section("data", DataConfig), PREPARED, show, downloading)
    show_prepared(PREPARED)


@app.command()
def reference() -> None:
    """Compute the reference's features and those of held-out real images: data/reference."""
    from cli.preflight import preflight
    from diffusion.evaluation.config import EvaluateConfig
    from diffusion.evaluation.reference import make_reference
    from diffusion.layout import PREPARED, REFERENCE
    from diffusion.params import load_section

    preflight("reference")
    with progress("reference") as show:
        make_reference(load_section("evaluate", EvaluateConfig), PREPARED, REFERENCE, show)


@app.command()
def train(
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the saved state and start again.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Go on though the code has changed.")] = False,
) -> None:
    """Train, or go on where the same training stopped: models/unet.safetensors."""
    from cli.preflight import preflight
    from cli.training import watched
    from diffusion.checkpoint import save_artefact
    from diffusion.data.store import open_store
    from diffusion.devices import default_device
    from diffusion.files import write_json
    from diffusion.layout import LOSS_CURVE, MODEL, PREPARED, RUN
    from diffusion.params import load_sections
    from diffusion.processes import is_follower, together
    from diffusion.resolve import resolve, result_of, training_code, training_fingerprint
    from diffusion.signals import stop_request
    from diffusion.train_config import TrainSections
    from diffusion.training import new_state
    from diffusion.training import train as train_model
    from diffusion.trainrun import open_training, write_loss_curve

    if is_follower():
        return _follow()
    config = preflight("train")
    sections, store, device = load_sections(TrainSections), open_store(PREPARED / "train"), default_device()
    artefact = resolve(sections, store.meta, device)
    code = training_code(sections.process, sections.model)
    with (
        open_training(artefact, code, fresh=fresh, keep=keep) as run,
        stop_request() as stop,
        together(sections.train, ANOTHER, _say, stop.raise_if_set) as ranks,
        watched(run, artefact, config, stop) as tracked,
    ):
        state = new_state(artefact, ranks.device)
        run.restore(state)
        tracked.announce(state)
        ranks.spread(training_fingerprint(artefact), state.saved())
        train_model(state, store, ranks, tracked.watch, tracked.save, partial(ranks.agree, stop))
        write_loss_curve(LOSS_CURVE, state.history)
        save_artefact(MODEL, state.ema.state_dict(), result_of(artefact, state.code))
        tracked.finished(MODEL)
    write_json(RUN, tracked.identity())


def _say(sentence: str) -> None:
    typer.echo(f"train: {sentence}", err=True)


def _follow() -> None:
    """Compute a share of every batch of a training that another process started, saves and tells of."""
    from diffusion.data.store import open_store
    from diffusion.devices import default_device
    from diffusion.distributed import RankLost
    from diffusion.errors import Interrupted
    from diffusion.layout import PREPARED
    from diffusion.params import load_sections
    from diffusion.processes import together
    from diffusion.resolve import resolve, training_fingerprint
    from diffusion.signals import stop_request
    from diffusion.train_config import TrainSections
    from diffusion.training import Silent, new_state
    from diffusion.training import train as train_model

    sections, store = load_sections(TrainSections), open_store(PREPARED / "train")
    artefact = resolve(sections, store.meta, default_device())
    try:
        with stop_request() as stop, together(sections.train, [], _say, stop.raise_if_set) as ranks:
            state = new_state(artefact, ranks.device)
            state.restore(ranks.spread(training_fingerprint(artefact), state.saved()))
            train_model(state, store, ranks, Silent(), lambda state: None, partial(ranks.agree, stop))
    except (Interrupted, RankLost) as error:  # the first process says it
        raise typer.Exit(error.exit_code) from None


@app.command()
def sample() -> None:
    """Sample every cell of the grid, finished ones of an earlier run left as they are: samples/."""
    from cli.preflight import preflight
    from diffusion.grid import grid
    from diffusion.layout import MODEL, SAMPLES
    from diffusion.params import load_section
    from diffusion.sample_config import SampleConfig
    from diffusion.settings import SweepConfig
    from diffusion.sweep import drop_other_cells
    from flows.sweep import run_sweep

    preflight("sample")
    section = load_section("sample", SampleConfig)
    cells = grid(section, load_section("sweep", SweepConfig))
    drop_other_cells(SAMPLES, cells)
    run_sweep(section, cells, MODEL, SAMPLES, progress)


@app.command()
def evaluate() -> None:
    """Score every cell against the reference: metrics/scores.json, and the curves in MLflow."""
    from cli.preflight import preflight
    from diffusion.evaluation.cells import open_cells
    from diffusion.evaluation.config import EvaluateConfig
    from diffusion.evaluation.evaluate import evaluate as score
    from diffusion.evaluation.evaluate import write_scores
    from diffusion.layout import PREPARED, REFERENCE, RUN, SAMPLES, SCORE_CURVES, SCORES
    from diffusion.params import load_section
    from diffusion.sample_config import SampleConfig
    from diffusion.settings import SweepConfig
    from tracking.runs import log_scores

    preflight("evaluate")
    section = load_section("evaluate", EvaluateConfig)
    cells = open_cells(load_section("sample", SampleConfig), load_section("sweep", SweepConfig), SAMPLES)
    with progress("evaluate") as show:
        scores = score(cells, section, REFERENCE, show, PREPARED)
    write_scores(scores, SCORES, SCORE_CURVES)
    log_scores(RUN, scores)


@app.command()
def report() -> None:
    """Write the report of the sweep: report/index.html, one file."""
    from diffusion.config import load
    from diffusion.layout import LOSS_CURVE, PREPARED, REPORT, RUN, SAMPLES, SCORES
    from diffusion.report import write_report
    from tracking.runs import log_report

    page = write_report(load(), SAMPLES, SCORES, PREPARED, LOSS_CURVE, REPORT)
    log_report(RUN, REPORT)
    typer.echo(f"report: {page}")
