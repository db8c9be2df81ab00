"""MLflow's pages of three small trainings and sweeps, in a real browser over a real server."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main
from cli.commands import pipeline
from tests.conftest import SMALL, write_params
from tests.helpers.browser import NEEDS_CHROMIUM
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.prepared import copy_reference
from tracking.mlflow_pages import comparison_link, experiment_link, run_link
from tracking.runs.run_lookup import find_run, newest_experiment_link, read_identity, training_runs
from tracking.spool.sender import deliver_all
from tracking.store import connect

pytestmark = [pytest.mark.long, NEEDS_CHROMIUM]
TRAININGS = {
    "digits": {},
    "lr0.001-digits": {"lr": {**SMALL["train"]["lr"], "rate": 0.001}},
    "seed1-digits": {"seed": 1},
}
SWEEP = {"steps": [2], "eta": [0.0]}


def train(folder: Path, **changes: object) -> str:
    """Train, sample and evaluate as the stages do; return the run's id."""
    write_params(folder, train=changes, sweep=SWEEP)
    pipeline.TrainStage().run()
    pipeline.SampleStage().run()
    deliver_all()
    pipeline.EvaluateStage().run()
    return str(find_run(read_identity().key).info.run_id)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The server's address, and the ids of three runs of a project, which is the working directory."""
    folder = tmp_path_factory.mktemp("trainings")
    server = MlflowServer(folder / "mlflow")
    server.folder.mkdir()
    server.start()
    write_params(folder, sweep=SWEEP)
    (folder / "profiles").mkdir()
    shutil.copy(folder / "params.yaml", folder / "profiles/digits.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tracking.runs.run_lookup.PROFILES", folder / "profiles")
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        copy_reference(folder)
        yield server.uri, [train(folder, **changes) for changes in TRAININGS.values()]
    server.kill()


def shown(browser, url: str, *texts: str) -> str:
    """Return the page's text once it contains all of these."""
    page = browser.new_page(viewport={"width": 1600, "height": 1400})
    page.goto(url)
    for expected in texts:
        page.get_by_text(expected, exact=False).first.wait_for(timeout=120_000)
    text = page.inner_text("body")
    page.close()
    return text


def test_experiment_page_lists_trainings_without_cells(trainings, browser):
    uri, _ = trainings
    experiment = training_runs(connect(uri))[0].info.experiment_id
    link = newest_experiment_link(uri, uri)
    assert link == experiment_link(uri, experiment)
    text = shown(browser, link, *TRAININGS, "3 matching runs")
    assert "Diffusion models of digits" in text


def test_description_has_space_between_the_columns_of_its_table(trainings, browser):
    uri, (run, *_) = trainings
    link = run_link(uri, connect(uri).get_run(run).info.experiment_id, run)
    assert "\t\N{EM SPACE}excess\t" in shown(browser, link, "images a cell against")


def test_compare_command_opens_mlflows_page_of_its_runs(trainings, browser, monkeypatch):
    uri, runs = trainings
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    done = CliRunner().invoke(main.app, ["compare", *(run[:12] for run in runs), "--open"])
    assert done.exit_code == 0, done.output
    experiment = connect(uri).get_run(runs[0]).info.experiment_id
    link = comparison_link(uri, [experiment] * 3, runs)
    assert opened == [link]
    assert f"MLflow: {link}\n" in done.stdout
    assert "from 1 Experiment" in shown(browser, link, "Comparing 3 Runs", *TRAININGS)
