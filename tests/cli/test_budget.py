"""`diffctl sample --budget`: sampling settings from the sweep of the model."""

import json

import numpy as np
import pytest

from diffusion.layout import MODEL, RUN, SCORES
from diffusion.model.model_file import read_artefact
from diffusion.protocol.scores_document import read_scores, write_scores_document
from diffusion.system.checksums import add_checksum
from diffusion.system.files import sha256_file, write_json
from tests.conftest import write_params
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import small_model
from tests.helpers.scores_document import document
from tracking.keys import FILE_SHA256, MODEL_FOLDER
from tracking.registry.registered_models import register
from tracking.runs.scored_runs import log_scores
from tracking.store import connect, tracking_uri

SWEEP = {(5, 0.0): 0.3, (10, 0.5): 0.2, (20, 0.0): 0.25, (50, 1.0): 0.1}


@pytest.fixture
def sample(project, invoke):
    """Run `diffctl sample` in a project with a model and the scores of its sweep."""
    digest = read_artefact(small_model(MODEL)).model_sha256
    write_scores_document(SCORES, document(SWEEP, model_sha256=digest, noise="large", seed=3))
    write_json(RUN, add_checksum({"key": "key", "fingerprint": "f" * 16}))
    return lambda *arguments: invoke("sample", "--out", "x.npz", "--num", "2", *arguments)


def test_budget_selects_the_best_affordable_cell(sample):
    made = json.loads(sample("--budget", "20", "--json").out)
    assert (made["steps"], made["eta"], made["noise"], made["seed"]) == (10, 0.5, "large", 0)
    budgeted = np.load("x.npz")["arr_0"]
    sample("--steps", "10", "--eta", "0.5", "--noise", "large")
    np.testing.assert_array_equal(np.load("x.npz")["arr_0"], budgeted)
    assert "5 steps, η = 0, ddim" in sample("--budget", "5", "--seed", "7").out


def test_unaffordable_or_contradicting_budgets_and_foreign_scores_are_refused(sample):
    assert_refused(sample("--budget", "4"), "steps5-eta0")
    for option in ("--eta", "--steps"):
        assert_refused(sample("--budget", "20", option, "1"), "--budget", option)
    write_scores_document(SCORES, document(SWEEP))
    assert_refused(sample("--budget", "20"), "another model")
    digest = read_artefact(MODEL).model_sha256
    write_scores_document(SCORES, document(SWEEP, model_sha256=digest, sampling_version=None))
    assert_refused(sample("--budget", "20"), "sampling_version")
    SCORES.unlink()
    assert_refused(sample("--budget", "20"), str(SCORES))


@pytest.mark.slow
def test_registered_model_and_run_provide_their_scores(project, sample):
    empty_database(project / "mlflow.db")
    write_params(project)
    register()
    run_id = log_scores(RUN, read_scores(SCORES))
    SCORES.unlink()
    assert json.loads(sample("--champion", "--budget", "20", "--json").out)["steps"] == 10
    client = connect(tracking_uri())
    client.log_artifact(run_id, str(MODEL), MODEL_FOLDER)
    client.set_tag(run_id, FILE_SHA256, sha256_file(MODEL))
    assert json.loads(sample("--run-id", run_id, "--budget", "60", "--json").out)["steps"] == 50
