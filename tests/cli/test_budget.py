"""`diffctl sample --budget`: the model's own sweep says how to sample it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.layout import MODEL, RUN, SCORES
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.protocol.scores import read_scores, write_document
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import sha256_file, write_json
from diffusion.system.seals import sealed
from tests.conftest import write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, network_of, spec_of
from tests.helpers.scores_document import document
from tracking.names import FILE_SHA256, MODEL_FOLDER
from tracking.registry import register
from tracking.runs import log_scores
from tracking.store import connect, tracking_uri

SWEEP = {(5, 0.0): 0.3, (10, 0.5): 0.2, (20, 0.0): 0.25, (50, 1.0): 0.1}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a model whose sweep was scored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = spec_of()
    save_artefact(MODEL, network_of(spec).state_dict(), artefact_of(spec))
    ours = read_artefact(MODEL).model_sha256
    write_document(SCORES, document(SWEEP, model_sha256=ours, noise="large", seed=3))
    write_json(RUN, sealed({"key": "key", "fingerprint": "f" * 16}))
    return tmp_path


def sample(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(main.app, ["sample", "--out", "x.npz", "--num", "2", *arguments])


def test_it_takes_the_best_cell_that_the_budget_buys(project):
    made = json.loads(sample("--budget", "20", "--json").stdout)
    assert (made["steps"], made["eta"], made["noise"], made["seed"]) == (10, 0.5, "large", 0)
    budgeted = np.load("x.npz")["arr_0"]
    sample("--steps", "10", "--eta", "0.5", "--noise", "large")
    np.testing.assert_array_equal(np.load("x.npz")["arr_0"], budgeted)


def test_it_says_what_it_took(project):
    done = sample("--budget", "5", "--seed", "7")
    assert done.exit_code == 0, done.exception
    assert "5 steps, η = 0, ddim" in done.stdout
    assert "for 5 network evaluations" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "4"), "the cheapest is steps5-eta0 with 5"),
        (("--budget", "20", "--eta", "0"), "--budget takes --eta from the model's sweep"),
        (("--budget", "20", "--steps", "20"), "--budget takes --steps"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(project, arguments, words):
    with pytest.raises(UsageError, match=words):
        raise sample(*arguments).exception


def test_scores_of_another_model_or_sampling_code_are_not_used(project):
    write_document(SCORES, document(SWEEP))
    with pytest.raises(UsageError, match="of another model"):
        raise sample("--budget", "20").exception
    write_document(
        SCORES, document(SWEEP, model_sha256=read_artefact(MODEL).model_sha256, sampling_version=None)
    )
    with pytest.raises(UsageError, match="the scores are not of sampling_version"):
        raise sample("--budget", "20").exception
    SCORES.unlink()
    with pytest.raises(DiffctlError, match="no scores at"):
        raise sample("--budget", "20").exception


@pytest.mark.slow
def test_a_registered_model_and_a_run_bring_their_scores(project):
    empty_database(project / "mlflow.db")
    write_params(project)
    register()
    run_id = log_scores(RUN, read_scores(SCORES))
    SCORES.unlink()
    champion = sample("--champion", "--budget", "20", "--json")
    assert json.loads(champion.stdout)["steps"] == 10, champion.exception
    client = connect(tracking_uri())
    client.log_artifact(run_id, str(MODEL), MODEL_FOLDER)
    client.set_tag(run_id, FILE_SHA256, sha256_file(MODEL))
    of_run = sample("--run-id", run_id, "--budget", "60", "--json")
    assert json.loads(of_run.stdout)["steps"] == 50, of_run.exception
