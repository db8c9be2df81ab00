"""What scores and the report of a training become in MLflow: child runs, curves, metrics and pictures."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.layout import RUN, SCORES
from diffusion.protocol.card import NETWORK_DIGESTS
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json, write_text
from tests.helpers.mlflow_server import free_port
from tests.helpers.scores_document import document, with_space
from tests.helpers.spools import write_training
from tracking import keys
from tracking.experiments import ensure_experiment, search_runs
from tracking.runs import scored_runs
from tracking.runs.run_lookup import find_run
from tracking.runs.score_logging import log_edit_scores, log_report, log_samples, log_scores, log_sweep
from tracking.runs.scored_runs import SCORES_PATH, fetch_model, fetch_samples, fetch_scores
from tracking.spool.sender import deliver_all
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
NOTE = "mlflow.note.content"


def children(run_id: str) -> list:
    client = connect()
    experiment = ensure_experiment(client, "diffctl-digits")
    return search_runs(client, [experiment], f"tags.`{keys.PARENT}` = '{run_id}'")


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, metric)]


@pytest.mark.slow
def test_scores_and_report_become_child_runs_curves_and_artifacts_of_the_training_once():
    write_training()
    run_id = log_scores(document())  # which delivers the spool first
    parent = connect().get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert history(run_id, "loss") == [(10, 0.1), (20, 0.05)]
    assert sorted(history(run_id, "kd_effnet_lite0_64/eta_0.0")) == [(5, 0.3), (10, 0.2)]
    assert sorted(history(run_id, "excess/eta_1.0")) == [(5, 475.0), (10, 375.0)]
    assert parent.data.tags[keys.BEST] == "kd_effnet_lite0_64 0.2 at steps10-eta0"
    cells = {run.data.tags[keys.CELL]: run for run in children(run_id)}
    assert set(cells) == set(document().cells)
    cell = cells["steps10-eta0"]
    assert (cell.info.status, cell.info.run_name) == ("FINISHED", "steps10-eta0")
    assert cell.data.metrics == document().cells["steps10-eta0"].scores
    assert cell.data.params.items() >= {"steps": "10", "reference_digest": "r" * 64}.items()
    assert fetch_scores(parent) == document()
    write_scores_document(SCORES, document())
    write_text(Path("report/index.html"), "<html>")
    log_report()
    assert [file.path for file in connect().list_artifacts(run_id, "report")] == ["report/index.html"]
    before = [run.to_dictionary() for run in children(run_id)]
    assert log_scores(document()) == run_id, "logging again changes nothing"
    assert [run.to_dictionary() for run in children(run_id)] == before
    assert len(history(run_id, "kd_effnet_lite0_64/eta_0.0")) == 2
    log_scores(document(num_images=1000))  # another protocol
    assert len(children(run_id)) == 8


@pytest.mark.slow
def test_newest_points_are_of_the_scores_that_were_logged_last():
    write_training()
    documents = [document({(5, 0.0): low, (10, 0.0): 2 * low}) for low in (0.1, 0.4)]
    other = document({(5, 0.0): 0.9, (20, 0.0): 0.8}, num_images=1000)
    for scores in (*documents, other, documents[0], documents[0]):
        run_id = log_scores(scores)
    log_sweep(run_id, other)  # the curves stay of one protocol
    log_sweep(run_id, document({(30, 0.0): 0.7}, guidance=1.5))
    for steps, network in enumerate(NETWORK_DIGESTS, 35):
        log_sweep(run_id, document({(steps, 0.0): 0.7}, **{network: "b" * 64}))
    log_sweep(run_id, document({(40, 0.0): 0.8}))  # the run's own evaluation stays
    newest = {
        (metric, point.step): point.value
        for metric in ("best/kd_effnet_lite0_64", "best/steps", "kd_effnet_lite0_64/eta_0.0")
        for point in sorted(
            connect().get_metric_history(run_id, metric), key=lambda point: (point.timestamp, point.value)
        )
    }
    values = {5: 0.1, 10: 0.2, 20: 0.8, 40: 0.8}
    curve = {("kd_effnet_lite0_64/eta_0.0", steps): value for steps, value in values.items()}
    assert newest == {("best/kd_effnet_lite0_64", 0): 0.1, ("best/steps", 0): 5.0} | curve
    assert connect().get_run(run_id).data.metrics["best/kd_effnet_lite0_64"] == 0.1
    assert len(history(run_id, "best/kd_effnet_lite0_64")) == 4, "nothing changed the last time"
    cells = {
        run.data.params["num_images"]: run for run in children(run_id) if run.info.run_name == "steps5-eta0"
    }
    assert {count: run.data.metrics["kd_effnet_lite0_64"] for count, run in cells.items()} == {
        "500": 0.1,
        "1000": 0.9,
    }


@pytest.mark.parametrize("network", ["guide", "classifier", "base"])
def test_curves_are_of_the_same_networks_though_the_first_cells_are_unguided(monkeypatch, network):
    def guided(steps: int, digest: str, eta: float = 1.0, **card: str):
        one = document({(steps, 0.0): 0.3, (steps, eta): 0.2})
        one.cells[f"steps{steps}-eta{eta:g}"].card.update({f"{network}_sha256": digest, **card})
        return one

    monkeypatch.setattr(scored_runs, "fetch_scores", lambda _: guided(5, "a", **{network: "file"}))
    assert scored_runs.extends_evaluation(None, guided(10, "a"))
    assert not scored_runs.extends_evaluation(None, guided(10, "b"))
    assert scored_runs.extends_evaluation(None, guided(10, "a", 0.5, **{network: "file"}))
    assert not scored_runs.extends_evaluation(None, guided(10, "b", 0.5, **{network: "file"}))


def test_scores_of_edits_become_metrics_by_nfe_once_a_protocol():
    write_training()
    run_id = log_scores(document())

    def cells(protocol: str, first: float) -> list[dict[str, object]]:
        same = {"operator": "mask:0,0,4,8", "method": "ddnm", "protocol": protocol}
        scores = ({"psnr": psnr, "psnr_low": psnr - 1} for psnr in (first, 22.0))
        return [same | {"nfe": nfe, "scores": one} for nfe, one in zip((10, 50), scores, strict=True)]

    for one in (cells("1a", 20.0), cells("1a", 20.0), cells("2b", 21.0)):
        log_edit_scores(run_id, {"cells": one})
    assert sorted(history(run_id, "edit/mask_0_0_4_8/ddnm/1a/psnr")) == [(10, 20.0), (50, 22.0)]
    assert sorted(history(run_id, "edit/mask_0_0_4_8/ddnm/2b/psnr")) == [(10, 21.0), (50, 22.0)]
    files = connect().list_artifacts(run_id, f"{keys.EVALUATION_FOLDER}/edits")
    assert len(files) == 2


def test_best_cell_becomes_metrics_and_pages_get_descriptions():
    write_training()
    run_id = log_scores(document())
    run = connect().get_run(run_id)
    best = {key: value for key, value in run.data.metrics.items() if key.startswith("best/")}
    scores = document().cells["steps10-eta0"].scores
    wanted = {name: value for name, value in scores.items() if "_std" not in name}
    wanted |= {"steps": 10.0, "eta": 0.0, "nfe": 10.0}
    assert best == {f"best/{name}": value for name, value in wanted.items()}
    assert history(run_id, "best/kd_effnet_lite0_64") == [(0, 0.2)]
    note = run.data.tags[NOTE]
    assert "| **10 steps, η = 0** | &emsp;200 | &emsp;175 | &emsp;0.2 |" in note
    experiment = connect().get_experiment(run.info.experiment_id)
    assert "*digits*" in experiment.tags[NOTE]
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best/kd_effnet_lite0_64"
    connect().set_tag(run_id, NOTE, "the one with the odd threes")
    log_scores(document(num_images=1000))
    assert connect().get_run(run_id).data.tags[NOTE] == "the one with the odd threes", "a person wrote it"


@pytest.mark.slow
def test_pictures_of_cells_are_logged_once():
    write_training()
    scores = document()
    run_id = log_scores(scores)
    pictures = {name: np.full((8, 8, 1), 10 * i, np.uint8) for i, name in enumerate(scores.cells)}
    log_samples(run_id, scores, pictures)
    log_samples(run_id, scores, dict.fromkeys(pictures, pictures["steps5-eta0"]))  # the first are kept
    client = connect()

    def logged(run: str) -> list[str]:
        return [file.path for file in client.list_artifacts(run, "images") if file.path.endswith(".png")]

    for cell in children(run_id):
        (path,) = logged(cell.info.run_id)
        with Image.open(client.download_artifacts(cell.info.run_id, path)) as picture:
            assert (np.asarray(picture) == pictures[cell.data.tags[keys.CELL]][..., 0]).all()
    shown = sorted(re.sub(r"\+timestamp.*", "", path) for path in logged(run_id))
    assert shown == [f"images/samples-eta_{eta}+step+{steps}" for eta in ("0.0", "1.0") for steps in (10, 5)]
    fetched = fetch_samples(client.get_run(run_id), scores)
    assert fetched.keys() == pictures.keys()
    assert all((picture == pictures[name]).all() for name, picture in fetched.items())
    other = document(num_images=1000)  # another protocol has other pictures
    assert fetch_samples(client.get_run(run_id), other) == {}
    log_scores(other)
    log_samples(run_id, other, pictures)
    assert len(logged(run_id)) == 8


def test_scores_need_mlflow_the_identity_of_the_model_and_a_model_file(monkeypatch):
    with pytest.raises(DiffctlError, match="dvc pull"):
        log_scores(document())
    write_training(end=None)
    deliver_all()
    with pytest.raises(DiffctlError, match="no model"):
        fetch_model("digits-f1f1f1f1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(DiffctlError, match="MLflow does not answer"):
        log_scores(document())


def test_model_without_a_run_gets_one_run():
    write_json(RUN, add_checksum({"key": "pulled", "fingerprint": "ab" * 8}))
    run_id = log_scores(document())
    assert log_scores(document()) == run_id
    run = find_run("digits-abababab")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")


def test_scores_of_every_feature_space_are_logged_with_its_extractor():
    write_training()
    both = with_space(document({(10, 0.0): 0.2}))
    run_id = log_scores(both)
    (child,) = children(run_id)
    metrics, params = child.data.metrics, child.data.params
    assert (metrics["excess"], metrics["excess_effnet_lite0_96"]) == (175.0, 350.0)
    assert (metrics["kd_effnet_lite0_64"], metrics["kd_effnet_lite0_96"]) == (0.2, 0.4)
    assert params["effnet-lite0-96.weights_sha256"] == "v" * 64
    assert history(run_id, "fd_effnet_lite0_96/eta_0.0") == [(10, 400.0)]
    other = with_space(document({(10, 0.0): 0.2}), weights_sha256="x" * 64)  # another protocol
    log_scores(other)
    assert len(children(run_id)) == 2
    assert fetch_scores(connect().get_run(run_id)) == other


def test_best_scores_that_are_no_longer_computed_become_nan():
    write_training()
    both, one = with_space(document({(10, 0.0): 0.2})), document({(10, 0.0): 0.2})
    for scores in (both, one, one, both):
        run_id = log_scores(scores)
    values = [value for _, value in history(run_id, "best/fd_effnet_lite0_96")]
    assert list(map(str, values)) == ["400.0", "nan", "400.0"]
    assert len(history(run_id, "best/fd_effnet_lite0_64")) == 1
    log_scores(one)
    assert math.isnan(connect().get_run(run_id).data.metrics["best/fd_effnet_lite0_96"])


def test_damaged_scores_are_reported_with_their_run():
    write_training()
    run_id = log_scores(document())
    connect().log_dict(run_id, {"cells": {}}, SCORES_PATH)
    with pytest.raises(DiffctlError, match=rf"^run digits-f1f1f1f1 \({run_id}\): scores\.json is damaged"):
        fetch_scores(find_run(run_id))


def test_run_is_found_by_id_prefix_name_fingerprint_and_key():
    write_training("one", "f1" * 8)
    write_training("two", "f2" * 8)
    deliver_all()
    run_id = find_run("digits-f1f1f1f1").info.run_id
    for name in (run_id, run_id[:20], "f1" * 8, "one"):
        assert find_run(name).info.run_id == run_id
    with pytest.raises(UsageError, match="diffctl runs"):
        find_run("nothing")
    write_training("three", "f1" * 8 + "0")
    deliver_all()
    with pytest.raises(UsageError, match="several runs"):
        find_run("digits-f1f1f1f1")


def test_model_is_downloaded_once_and_verified(monkeypatch):
    write_training()
    deliver_all()
    path = fetch_model("digits-f1f1f1f1")
    assert path.read_bytes() == b"weights of key"
    assert path.parent.name == hashlib.sha256(b"weights of key").hexdigest()
    stored = Path(find_run("digits-f1f1f1f1").info.artifact_uri.removeprefix("file://"))
    (stored / keys.MODEL_FOLDER / "model.safetensors").write_bytes(b"something else")
    assert fetch_model("digits-f1f1f1f1") == path, "from the cache"
    path.write_bytes(b"damaged")
    with pytest.raises(DiffctlError, match="not the one that was logged"):
        fetch_model("digits-f1f1f1f1")
