"""Scores during a training: the images and their card, which checkpoints are kept, what MLflow receives."""

from pathlib import Path

import pytest
import torch

from cli.stages.training import scored_images
from diffusion.config import parse
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.training_scores import ScoredCheckpoints, ValidationImages, ValidationScorer
from diffusion.images.store import open_store
from diffusion.model.model_file import load_model, tensors_sha256
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, GuidanceRule
from diffusion.protocol.settings import SampleSettings
from diffusion.train.plan import plan_artefact
from diffusion.train.train_step import TrainState, new_state
from tests.conftest import params
from tests.helpers.features import normal
from tests.helpers.mlflow_server import empty_database
from tests.helpers.networks import artefact_of, spec_of
from tests.helpers.spools import EXPERIMENT, logged, stored, the_run
from tests.helpers.trainings import plan_of
from tracking.experiments import ensure_experiment
from tracking.spool.delivery import deliver
from tracking.spool.event_log import Spool
from tracking.store import connect

CARD = {"num_images": 20}
SCORES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0}


@pytest.fixture
def state(digits_store: Path) -> TrainState:
    return new_state(plan_of(open_store(digits_store)), torch.device("cpu"))


def add_all(folder: Path, keep: str | int, state: TrainState) -> list[list[int]]:
    """Add every step and return the steps that each call dropped."""
    checkpoints, artefact = ScoredCheckpoints(folder, keep, "kd", CARD), plan_artefact(state.plan)
    return [checkpoints.add(step, {"kd": value}, state.ema, artefact)[1] for step, value in SCORES.items()]


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


def test_scores_of_another_protocol_are_ignored(tmp_path: Path, state: TrainState) -> None:
    add_all(tmp_path, "best", state)
    other = ScoredCheckpoints(tmp_path, "best", "kd", {"num_images": 40})
    assert other.scores() == {}
    assert other.add(50, {"kd": 9.0}, state.ema, plan_artefact(state.plan))[1] == [20]
    assert kept(tmp_path) == [50]


def test_kept_checkpoint_is_a_model_file(tmp_path: Path, state: TrainState) -> None:
    checkpoints, artefact = ScoredCheckpoints(tmp_path, "best", "kd", CARD), plan_artefact(state.plan)
    path, _ = checkpoints.add(10, {"kd": 1.0}, state.ema, artefact)
    assert path is not None
    model = load_model(path)
    changes = {"step": 10, "weights_sha256": tensors_sha256(state.ema.state_dict())}
    assert model.artefact == artefact.model_copy(update=changes)
    ours = state.ema.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.network.state_dict().items())


def spooled(folder: Path) -> None:
    """Spool three scored steps: the first dropped, the second not kept, the third kept."""
    spool = Spool(folder, "key", "digits-abcd", EXPERIMENT)
    files = [folder / "checkpoints" / f"{step}.safetensors" for step in (10, 30)]
    files[0].parent.mkdir()
    for path in files:
        path.write_bytes(f"weights {path.name}".encode())
    for step, file, value in ((10, files[0], 3.0), (20, None, 4.0), (30, files[1], 2.0)):
        spool.checkpoint(step, file, {"validation/kd": value})
    spool.dropped(10)
    spool.close("FINISHED")


def test_mlflow_receives_kept_checkpoints_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = empty_database(tmp_path / "mlflow.db")
    folder = tmp_path / "run"
    spooled(folder)
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


def test_the_card_contains_the_code_of_all_that_the_settings_name(monkeypatch, extractor):
    rule = GuidanceRule("diffusion.analysis.mixture:from_grey", nfe=1)
    monkeypatch.setitem(GUIDANCE_RULES.data, "from-grey", rule)
    real = Features(normal(0, 20), normal(1, 20, 4))
    reference = Reference(META, real, real.features)

    def code(**values: object) -> object:
        images = ValidationImages(SampleSettings(steps=2, guidance=1.0, **values), 8, 8)
        scorer = ValidationScorer(images, extractor, reference, EvaluateConfig())
        return scorer.card(artefact_of(spec_of()))["code"]

    assert code() == code(seed=1)
    assert code() != code(guidance_rule="from-grey")
    assert code() != code(sampler="dpm-solver++")
