"""Trainings that begin with a model's weights: what is pinned, what stays, and that they go on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.config import parse
from diffusion.images.store import ImageStore, open_store
from diffusion.layout import STARTS
from diffusion.model.classifier import Classifier, ClassifierArtefact
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.train.distributed import ProcessGroup
from diffusion.train.identity import DenoiserPlan, plan_training, result_of, training_fingerprint
from diffusion.train.loop import Silent, TrainState, learning_rate, new_state, train
from diffusion.train.run_folder import open_run
from diffusion.train.start import StartRefused, keep_start
from tests.conftest import params

CPU = torch.device("cpu")


@pytest.fixture
def store(digits_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.chdir(tmp_path)
    return open_store(digits_store)


def plan_of(store: ImageStore, start: dict[str, Any] | None = None, **changes: Any) -> DenoiserPlan:
    settings = {"precision": "fp32", **changes.pop("train", {}), "start": start}
    return plan_training(parse(params(train=settings, **changes), "test"), store.meta, CPU)


def trained(plan: DenoiserPlan, store: ImageStore, saves: Any = None, stop_at: int | None = None):
    """The plan's training, to its end or to `stop_at`."""
    state = new_state(plan, CPU)

    def check_stop() -> None:
        if stop_at is not None and state.step >= stop_at:
            raise Interrupted("stopped", 15)

    train(state, store, ProcessGroup(CPU), Silent(), saves or (lambda state: None), check_stop)
    return state


def kept(state: TrainState, folder: Path) -> str:
    """The state's model among the starts; its SHA-256."""
    path = folder / "trained.safetensors"
    save_artefact(path, state.ema.state_dict(), result_of(state.plan))
    return keep_start(path)[1].model_sha256


@pytest.fixture
def start(store: ImageStore, tmp_path: Path) -> str:
    """The SHA-256 of a model of digits that is among the starts."""
    return kept(trained(plan_of(store), store), tmp_path)


def test_network_and_average_begin_as_the_start(store: ImageStore, start: str) -> None:
    state = new_state(plan_of(store, {"sha256": start}), CPU)
    (path,) = STARTS.iterdir()
    wanted = load_model(path).network.state_dict()
    for network in (state.network, state.ema):
        assert all(torch.equal(one, wanted[name]) for name, one in network.state_dict().items())
    assert {group["scale"] for group in state.optimizer.param_groups} == {1.0}


def test_it_learns_in_few_steps_what_takes_many_from_scratch(store: ImageStore, tmp_path: Path) -> None:
    first = kept(trained(plan_of(store, train={"steps": 60, "lr": 0.004}), store), tmp_path)
    few: dict[str, Any] = {"steps": 6, "log_every": 6}
    (scratch,) = trained(plan_of(store, train=few), store).history
    (tuned,) = trained(plan_of(store, {"sha256": first}, train=few), store).history
    assert tuned["loss"] < 0.8 * scratch["loss"]


def test_another_start_is_another_training_and_none_is_as_before(store: ImageStore, start: str) -> None:
    plain = plan_of(store)
    assert "start" not in plain.model_dump()["train"]
    assert "lineage" not in plain.model_dump()
    plans = [
        plain,
        plan_of(store, {"sha256": start}),
        plan_of(store, {"sha256": start, "lr_scale": 0.5}),
        plan_of(store, {"sha256": start, "freeze": ["encoder"]}),
    ]
    assert len({training_fingerprint(plan) for plan in plans}) == 4


def test_the_file_names_all_models_that_it_comes_from(store: ImageStore, start: str, tmp_path: Path) -> None:
    second = kept(trained(plan_of(store, {"sha256": start}), store), tmp_path)
    third = trained(plan_of(store, {"sha256": second}), store)
    path = tmp_path / "third.safetensors"
    save_artefact(path, third.ema.state_dict(), result_of(third.plan))
    artefact = read_artefact(path)
    assert [one.sha256 for one in artefact.lineage] == [second, start]
    nearest = artefact.lineage[0]
    assert (nearest.data, nearest.digest, nearest.step) == ("digits", store.digest, 12)
    assert artefact.train["start"] == {"sha256": second, "freeze": [], "lr_scale": 1.0}
    other = artefact.model_copy(update={"lineage": ()})
    assert other.model_sha256 != artefact.model_sha256


def test_frozen_parts_stay_and_others_learn(store: ImageStore, start: str) -> None:
    plan = plan_of(store, {"sha256": start, "freeze": ["encoder", "time.0"]}, train={"weight_decay": 0.1})
    before = {name: one.clone() for name, one in new_state(plan, CPU).network.state_dict().items()}
    state = trained(plan, store)
    for network in (state.network, state.ema):
        moved = {name for name, one in network.state_dict().items() if not torch.equal(one, before[name])}
        assert not any(name.startswith(("encoder.", "time.0.")) for name in moved)
        assert {"stem.weight", "time.2.weight", "head.weight"} <= moved


def test_what_was_there_learns_at_its_own_rate(store: ImageStore, start: str) -> None:
    meta = {**store.meta, "classes": ["zero", *store.meta["classes"][1:]]}
    other = ImageStore(store.path, store.images, store.labels, meta)
    state = new_state(plan_of(other, {"sha256": start, "lr_scale": 0.25}), CPU)
    groups = {group["scale"]: group for group in state.optimizer.param_groups}
    assert groups.keys() == {0.25, 1.0}
    assert [one.shape for one in groups[1.0]["params"]] == [state.network.classes.weight.shape]
    rate = learning_rate(state.plan.train.lr, 11, state.plan.train.steps)
    trained_groups = trained(state.plan, other).optimizer.param_groups
    assert {group["scale"]: group["lr"] for group in trained_groups} == {0.25: 0.25 * rate, 1.0: rate}


@pytest.mark.parametrize("at", [1, 7])
def test_stopped_and_gone_on_with_it_is_the_uninterrupted_one(
    store: ImageStore, start: str, tmp_path: Path, at: int
) -> None:
    plan = plan_of(store, {"sha256": start, "freeze": ["stem"], "lr_scale": 0.5})
    whole = trained(plan, store)
    with open_run(tmp_path / "runs", "a") as folder:
        with pytest.raises(Interrupted):
            trained(plan, store, folder.save, at)
        state = new_state(plan, CPU)
        assert folder.restore(state)
        train(state, store, ProcessGroup(CPU), Silent(), lambda state: None, lambda: None)
    ours, theirs = state.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("pinned", "changes", "said"),
    [
        ({"freeze": ["head", "tail"]}, {}, r"no 'tail'; its parts are classes, decoder, encoder, head"),
        (
            {"freeze": ["classes", "decoder", "encoder", "head", "middle", "norm", "stem", "time"]},
            {},
            "leaves nothing to train",
        ),
        ({}, {"model": {"channels": 16}}, r"model\.channels is 16, and the start has 8"),
        ({}, {"process": {"prediction": "eps"}}, r"prediction is eps, and the start predicts velocity"),
        ({"sha256": "0" * 64}, {}, r"start/0000000000000000\.safetensors, .* is not here: `diffctl use"),
    ],
)
def test_what_cannot_begin_so_is_refused_before_it_begins(
    store: ImageStore, start: str, pinned: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(StartRefused, match=said):
        plan_of(store, {"sha256": start, **pinned}, **changes)


def test_another_model_in_its_place_and_a_damaged_one_are_refused(store: ImageStore, start: str) -> None:
    (path,) = STARTS.iterdir()
    whole = path.read_bytes()
    loaded = load_model(path)
    save_artefact(path, loaded.network.state_dict(), loaded.artefact.model_copy(update={"step": 13}))
    with pytest.raises(StartRefused, match="is another model"):
        plan_of(store, {"sha256": start})
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StartRefused, match="not a whole safetensors file"):
        plan_of(store, {"sha256": start})
    changed = bytearray(whole)
    changed[-3] ^= 1
    path.write_bytes(changed)
    plan = plan_of(store, {"sha256": start})  # its weights are not read yet
    with pytest.raises(DiffctlError, match="its weights are not those that it was written with"):
        new_state(plan, CPU)


def test_only_a_whole_diffusion_model_of_this_format_becomes_a_start(
    store: ImageStore, start: str, tmp_path: Path
) -> None:
    loaded = load_model(next(STARTS.iterdir()))
    newer = tmp_path / "newer.safetensors"
    save_artefact(newer, loaded.network.state_dict(), loaded.artefact.model_copy(update={"format": 4}))
    with pytest.raises(DiffctlError, match="is of another format: format"):
        keep_start(newer)
    spec = loaded.artefact.network.model_copy(update={"out_channels": 10, "num_classes": 10})
    said = ClassifierArtefact.model_construct(
        **{**dict(loaded.artefact), "network": spec, "kind": "classifier"}
    )
    other = tmp_path / "classifier.safetensors"
    save_artefact(other, Classifier(spec).state_dict(), said)
    with pytest.raises(DiffctlError, match="holds a classifier"):
        keep_start(other)
    assert len(list(STARTS.iterdir())) == 1
