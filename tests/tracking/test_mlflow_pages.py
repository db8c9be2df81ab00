"""What MLflow's pages show of trainings, in a real browser over a real server."""

from pathlib import Path

import numpy as np
import pytest

from diffusion.layout import RUN
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.files import write_json
from diffusion.system.seals import sealed
from tests.helpers.browser import NEEDS_CHROMIUM
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.scores_document import document
from tracking.cells import log_samples
from tracking.links import comparison_link, experiment_link, run_link
from tracking.lookup import newest_link, parent_runs
from tracking.names import FINGERPRINT
from tracking.notes import note_tags, training_note
from tracking.runs import log_scores
from tracking.sender import sync
from tracking.spool import Spool
from tracking.store import connect

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
NAMES = ("digits", "digits-lr0.001", "digits-seed1")
SCORES = (0.2, 0.3, 0.22)


def scores(value: float, model: str) -> ScoresDocument:
    cells = {(5, 0.0): value + 0.1, (10, 0.0): value, (10, 1.0): value + 0.2}
    return document(cells, model_sha256=model * 64)


def train(name: str, number: int, value: float) -> str:
    """A finished training with its scores and pictures; returns its run's id."""
    fingerprint = f"{number}a" * 8
    folder = Path("runs/train") / fingerprint
    params = {"data.name": "digits", "train.steps": "20", "train.lr.rate": "0.001"}
    spool = Spool(folder, name, name, "diffctl-digits")
    spool.params(params)
    spool.tags({FINGERPRINT: fingerprint, **note_tags(training_note(params, fingerprint))})
    for step in (10, 20):
        spool.metrics(step, {"loss": 1 / step, "grad_norm": 1.0})
    spool.close("FINISHED")
    sync()
    write_json(RUN, sealed({"key": name, "fingerprint": fingerprint}))
    made = scores(value, str(number))
    run_id = log_scores(RUN, made)
    log_samples(run_id, made, {cell: np.full((64, 64, 1), 40 * number, np.uint8) for cell in made.cells})
    return run_id


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The server's address and the runs' ids, of three trainings."""
    folder = tmp_path_factory.mktemp("trainings")
    server = MlflowServer(folder / "mlflow")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield (
            server.uri,
            [train(name, i, value) for i, (name, value) in enumerate(zip(NAMES, SCORES, strict=True))],
        )
    server.kill()


def shown(browser, url: str, *texts: str) -> str:
    """The page's text once it shows all of these."""
    page = browser.new_page(viewport={"width": 1600, "height": 1400})
    page.goto(url)
    for text in texts:
        page.get_by_text(text, exact=False).first.wait_for(timeout=120_000)
    said = page.inner_text("body")
    page.close()
    return said


def test_the_experiment_opens_on_trainings_by_their_best_score(trainings, browser):
    uri, _ = trainings
    experiment = parent_runs(connect(uri))[0].info.experiment_id
    link = newest_link(uri, uri)
    assert link == experiment_link(uri, experiment)
    said = shown(browser, link, *NAMES, "best/kd_effnet_lite0_64", "samples-eta_0.0")
    assert "3 matching runs" in said  # without their cells
    assert said.index("digits-seed1") < said.index("digits-lr0.001")  # the better first
    assert {"Scores", "Samples", "Training"} <= {line.split(" (")[0].strip() for line in said.splitlines()}
    assert "Diffusion models of digits" in said
    table = shown(browser, link.replace("CHART", "TABLE"), *NAMES, "best/steps", "train.lr.rate")
    for value in ("0.2", "200", "0.3", "300"):
        assert value in table


def test_a_runs_page_says_what_it_is_of(trainings, browser):
    uri, runs = trainings
    run = connect(uri).get_run(runs[0])
    said = shown(
        browser, run_link(uri, run.info.experiment_id, runs[0]), "diffusion model of digits", "The best"
    )
    assert "steps10-eta0" in said
    assert "best/evaluations" in said


def test_compared_runs_stand_side_by_side(trainings, browser):
    uri, runs = trainings
    experiment = connect(uri).get_run(runs[0]).info.experiment_id
    said = shown(browser, comparison_link(uri, [experiment] * 3, runs), "Comparing 3 Runs", *NAMES)
    assert "from 1 Experiment" in said
