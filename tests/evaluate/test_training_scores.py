"""Scores during a training: their card, which checkpoints are kept, what MLflow receives, resume and stop."""

import errno
import json
import signal
from pathlib import Path

import pytest
import torch

from diffusion.config import parse
from diffusion.evaluate import training_scores
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.training_scores import (
    ScoredCheckpoints,
    ValidationImages,
    ValidationScorer,
    scored_images,
)
from diffusion.images.store import open_store
from diffusion.layout import MODEL, RUN
from diffusion.model.model_file import load_model, read_artefact, tensors_sha256
from diffusion.protocol.grid import SAMPLING_VERSION
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, GuidanceRule
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guides import Guides
from diffusion.sample.low_res import RealImages
from diffusion.train.initial_state import new_state
from diffusion.train.plan import plan_artefact
from diffusion.train.train_state import TrainState
from tests.conftest import diffctl, params, write_params
from tests.helpers.digits_sweep import normal
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.prepared import copy_data
from tests.helpers.spools import EXPERIMENT, logged, open_spool, stored, the_run
from tests.helpers.training_process import model_bytes, signal_at, train_to_the_end
from tests.helpers.trainings import plan_of
from tracking.experiments import ensure_experiment
from tracking.spool.delivery import deliver
from tracking.spool.event_log import read_events
from tracking.store import connect

CARD = {"num_images": 20}
SCORES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0}


@pytest.fixture
def state(digits_store: Path) -> TrainState:
    return new_state(plan_of(open_store(digits_store)), torch.device("cpu"))


def add_all(folder: Path, keep: str | int, state: TrainState) -> list[list[int]]:
    """Add every step and return the steps that each one removed."""
    checkpoints = ScoredCheckpoints(folder, keep, "kd", CARD)
    return [add(checkpoints, step, value, state) for step, value in SCORES.items()]


def add(checkpoints: ScoredCheckpoints, step: int, value: float, state: TrainState) -> list[int]:
    _, removed = checkpoints.save(step, {"kd": value}, state.ema, plan_artefact(state.plan))
    checkpoints.record(step, {"kd": value}, removed)
    return removed


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("keep", "stay", "gone"),
    [
        ("best", [20], [[], [10], [], []]),
        ("last", [40], [[], [10], [20], [30]]),
        (20, [20, 40], [[], [], [], []]),
    ],
)
def test_keep_best_last_or_every_k_steps(
    tmp_path: Path, state: TrainState, keep: str | int, stay: list[int], gone: list[list[int]]
) -> None:
    assert add_all(tmp_path, keep, state) == gone
    assert kept(tmp_path) == stay
    assert add_all(tmp_path, keep, state)[-1] == [], "a replay changes nothing"
    assert kept(tmp_path) == stay
    found = ScoredCheckpoints(tmp_path, keep, "kd", CARD).scores()
    assert found == {step: {"kd": value} for step, value in SCORES.items()}
    model, ours = load_model(tmp_path / f"{stay[0]:09d}.safetensors"), state.ema.state_dict()
    changes = {"step": stay[0], "weights_sha256": tensors_sha256(ours)}
    assert model.artefact == plan_artefact(state.plan).model_copy(update=changes)
    assert all(torch.equal(value, ours[name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("keep", "gone", "stay"), [("best", [], [20, 60]), ("last", [40], [60]), (20, [], [20, 40, 60])]
)
def test_scores_of_another_protocol_are_ignored(
    tmp_path: Path, state: TrainState, keep: str | int, gone: list[int], stay: list[int]
) -> None:
    add_all(tmp_path, keep, state)
    other = ScoredCheckpoints(tmp_path, keep, "kd", {"num_images": 40})
    assert (other.scores(), other.changed_fields()) == ({}, ["num_images"])
    assert add(other, 60, 9.0, state) == gone
    assert (kept(tmp_path), other.changed_fields()) == (stay, [])
    if keep == "best":
        assert (add(other, 70, 8.0, state), kept(tmp_path)) == ([60], [20, 70])


def test_best_checkpoint_stays_if_a_better_one_is_not_saved(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = ScoredCheckpoints(tmp_path, "best", "kd", CARD)
    add(checkpoints, 10, 2.0, state)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(training_scores, "save_artefact", fail)
        with pytest.raises(OSError, match="No space"):
            add(checkpoints, 20, 1.0, state)
    assert (kept(tmp_path), checkpoints.scores().keys()) == ([10], {10})  # step 20 is repeated after a stop
    assert add(checkpoints, 30, 3.0, state) == []
    assert add(checkpoints, 40, 1.5, state) == [10]
    (tmp_path / f"{40:09d}.safetensors").unlink()
    add(checkpoints, 50, 2.5, state)
    assert kept(tmp_path) == [50]


def test_mlflow_receives_kept_checkpoints_once(tmp_path: Path) -> None:
    uri, folder = empty_database(tmp_path / "mlflow.db"), tmp_path / "run"
    spool = open_spool(folder)
    for step, value in ((10, 3.0), (20, 4.0), (30, 2.0)):
        file = folder / f"{step}.safetensors"
        file.write_text(f"weights {step}")
        spool.checkpoint(step, None if step == 20 else file, {"validation/kd": value})
    spool.dropped(10)
    spool.close("FINISHED")
    for _ in range(2):  # the second time as by a sender that was killed before it could note anything
        assert deliver(folder, uri).rejected == 0
        assert stored(uri) == logged(folder)
        client = connect(uri)
        experiment = ensure_experiment(client, EXPERIMENT)
        (model,) = client.search_logged_models([experiment])
        assert (model.name, model.status) == ("step-000000030", "READY")
        (point,) = model.metrics
        assert (point.key, point.step, point.value) == ("validation/kd", 30, 2.0)
        (file,) = client.list_logged_model_artifacts(model.model_id)
        assert file.path == "30.safetensors"
        (output,) = [o for o in the_run(uri).outputs.model_outputs if o.model_id == model.model_id]
        assert output.step == 30
        (folder / "sent.json").unlink()


META = {"extractor": "effnet-lite0-64", "reference_split": "train", "reference_count": 20, "image_size": 8}
META |= dict.fromkeys(("name", "weights_sha256", "dtype"), "")
PROFILES = {"ema_profiles": {"sigma_rel": [0.1], "every": 4}}


@pytest.mark.parametrize(
    ("sample", "sweep", "guidance"),
    [
        ({"guidance": 1.0, "guide": "ema:0.1@4"}, {}, 0.0),
        ({"guidance": 1.0, "guidance_rule": "autoguidance"}, {"guide": ["ema:0.1@4"]}, 0.0),
        ({"guidance": 1.0, "classifier": "classifier.safetensors"}, {}, 1.0),
    ],
)
def test_other_networks_do_not_guide_the_scored_images(sample, sweep, guidance):
    config = parse(params(sample=sample, sweep=sweep, train={**PROFILES, "p_uncond": 0.1}), "params")
    settings = scored_images(config).settings
    assert (settings.guidance, settings.guide, settings.classifier) == (guidance, None, None)
    assert not settings.needs_guide


@pytest.mark.parametrize(("schedule", "spacing"), [("cosine", "uniform"), ("edm", "karras")])
def test_scored_images_need_no_learned_times(schedule, spacing):
    learned = {"spacing": "learned", "spacing_options": {"levels": [80.0, 1.0]}}
    config = parse(params(process={"schedule": schedule}, sample=learned), "params")
    assert scored_images(config).settings.spacing == spacing


def scorer_of(extractor, **values: object) -> ValidationScorer:
    real = Features(normal(0, 20), normal(1, 20, 4))
    images = ValidationImages(SampleSettings(steps=2, guidance=1.0, **values), 8, 8)
    return ValidationScorer(images, extractor, Reference(META, real, real.features), EvaluateConfig())


def test_the_card_contains_the_code_of_all_that_the_settings_name(monkeypatch, extractor):
    rule = GuidanceRule("diffusion.analysis.mixture:from_grey", nfe=1)
    monkeypatch.setitem(GUIDANCE_RULES.data, "from-grey", rule)

    def code(**values: object) -> object:
        return scorer_of(extractor, **values).card(artefact_of(spec_of()))["code"]

    assert code() == code(seed=1)
    assert code() != code(guidance_rule="from-grey")
    assert code() != code(sampler="dpm-solver++")


def test_the_card_has_the_held_out_images_that_are_enlarged(monkeypatch, extractor, digits_store):
    real = RealImages(open_store(digits_store))
    monkeypatch.setattr(training_scores, "held_out", lambda network: Guides(real=real))
    card = scorer_of(extractor).card(artefact_of(spec_of(low_res=4)))
    assert card["real_sha256"] == real.model_sha256
    assert card["sampling_version"] == SAMPLING_VERSION + 1


# Whole trainings with scores.

EVALUATING = {"eval_every": 4, "eval_images": 20, "eval_steps": 2, "keep": "best"}


@pytest.fixture
def prepared(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_database(project / "mlflow.db"))
    copy_data(project)
    return project


def scores(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.glob("runs/train/*/checkpoints/scores.json")
    return json.loads(path.read_text())["steps"]


def kept_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("runs/train/*/checkpoints/*.safetensors")}


def validation_points(folder: Path) -> list[tuple[int, str]]:
    (run,) = folder.glob("runs/train/*")
    return [
        (event.step, name)
        for event in read_events(run)
        if event.kind == "metrics"
        for name in event.values
        if name.startswith("validation/")
    ]


@pytest.mark.slow
def test_scoring_changes_no_bit_of_the_training(prepared: Path) -> None:
    train_to_the_end(prepared)
    plain, curve = model_bytes(prepared), (prepared / "plots/loss.csv").read_bytes()
    write_params(prepared, train=EVALUATING)
    assert diffctl(prepared, "stage", "train", "--fresh").returncode == 0
    assert model_bytes(prepared) == plain
    assert (prepared / "plots/loss.csv").read_bytes() == curve
    assert json.loads((prepared / RUN).read_text())["model_sha256"] == read_artefact(MODEL).model_sha256
    found = scores(prepared)
    assert list(found) == ["12", "4", "8"]
    best = min(found, key=lambda step: (found[step]["kd_effnet_lite0_64"], int(step)))
    assert list(kept_files(prepared)) == [f"{int(best):09d}.safetensors"]
    client = connect()
    (experiment,) = [e for e in client.search_experiments() if e.name == "diffctl-digits"]
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.name == f"step-{int(best):09d}"
    logged = {metric.key: metric.value for metric in model.metrics}
    assert logged["validation/kd_effnet_lite0_64"] == pytest.approx(found[best]["kd_effnet_lite0_64"])


@pytest.mark.slow
@pytest.mark.long
def test_resumed_training_has_the_same_scores(prepared: Path) -> None:
    write_params(prepared, train={**EVALUATING, "log_every": 1})
    train_to_the_end(prepared)
    whole, files, points = scores(prepared), kept_files(prepared), validation_points(prepared)
    (run,) = prepared.glob("runs/train/*")
    run.rename(prepared / "runs/whole")
    for step in (5, 9):
        assert signal_at(prepared, step, signal.SIGKILL).returncode == -signal.SIGKILL
    train_to_the_end(prepared)
    assert scores(prepared) == whole
    assert kept_files(prepared) == files
    assert validation_points(prepared) == points


@pytest.mark.long
def test_stop_does_not_wait_for_a_score(prepared: Path) -> None:
    write_params(prepared, train={**EVALUATING, "log_every": 1, "eval_images": 1000, "eval_steps": 20})
    stopped = signal_at(prepared, 4, signal.SIGTERM)
    assert stopped.returncode == 143
    (run,) = prepared.glob("runs/train/*")
    assert (run / "state-000000004.sealed").exists()
    assert not (run / "checkpoints").exists(), "the score takes longer than the signal"
    write_params(prepared, train={**EVALUATING, "log_every": 1})
    train_to_the_end(prepared)
    assert list(scores(prepared)) == ["12", "4", "8"]
    assert {step for step, _ in validation_points(prepared)} == {4, 8, 12}
