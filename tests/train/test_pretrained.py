"""Fine-tuning: trainings that start from the pinned weights of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.images.store import ImageStore, open_store
from diffusion.layout import STARTS
from diffusion.model.model_file import load_model, read_artefact, save_artefact
from diffusion.system.errors import DiffctlError
from diffusion.train.checkpoint.run_dir import open_run
from diffusion.train.initial_state import new_state
from diffusion.train.optimizers.lr_schedule import learning_rate
from diffusion.train.plan import DenoiserPlan, plan_artefact, training_fingerprint
from diffusion.train.pretrained import PretrainedRefused, store_pretrained
from diffusion.train.train_state import TrainState
from tests.helpers import trainings
from tests.helpers.trainings import CPU, assert_same, restore, run, run_until


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan_of(store: ImageStore, start: dict[str, Any] | None = None, **changes: Any) -> DenoiserPlan:
    train = {"precision": "fp32", **changes.pop("train", {}), "init_from": start}
    return trainings.plan_of(store, train=train, **changes)


def trained(plan: DenoiserPlan, store: ImageStore) -> TrainState:
    state = new_state(plan, CPU)
    run(state, store)
    return state


def kept(state: TrainState, folder: Path) -> str:
    """Keep the state's model as a start; return its SHA-256."""
    path = folder / "trained.safetensors"
    save_artefact(path, state.ema.state_dict(), plan_artefact(state.plan))
    return store_pretrained(path)[1].model_sha256


@pytest.fixture(scope="module")
def digits_model(digits_template: Path) -> TrainState:
    store = open_store(digits_template)
    return trained(plan_of(store), store)


@pytest.fixture
def start(store: ImageStore, digits_model: TrainState, tmp_path: Path) -> str:
    """Return the SHA-256 of a kept model of digits."""
    return kept(digits_model, tmp_path)


def test_network_and_ema_start_with_the_pretrained_weights(store, start):
    state = new_state(plan_of(store, {"sha256": start}), CPU)
    (path,) = STARTS.iterdir()
    wanted = load_model(path).network.state_dict()
    for network in (state.network, state.ema):
        assert all(torch.equal(one, wanted[name]) for name, one in network.state_dict().items())
    assert {group["scale"] for group in state.optimizer.param_groups} == {1.0}


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_an_imported_model_match_the_same_numbers_only(store, digits_model, tmp_path, first):
    artefact, path = plan_artefact(digits_model.plan), tmp_path / "imported.safetensors"
    data = artefact.data.model_copy(update={"digest": "file:0"})
    save_artefact(path, digits_model.ema.state_dict(), artefact.model_copy(update={"data": data}))
    start = store_pretrained(path)[1].model_sha256
    meta = {**store.meta, "classes": [str(first + label) for label in range(10)]}
    other = ImageStore(store.path, store.images, store.labels, meta)
    rows = new_state(plan_of(other, {"sha256": start}), CPU).network.classes.weight
    imported = load_model(path).network.classes.weight
    assert torch.equal(rows[:10], imported[:10]) is (first == 0)
    assert (rows[:10] == rows[0]).all() == (first == 1), "all start as no class"


def test_fingerprint_depends_on_the_start_and_is_unchanged_without_one(store, start):
    plain = plan_of(store)
    assert "init_from" not in plain.model_dump()["train"]
    assert "lineage" not in plain.model_dump()
    options = ({}, {"lr_scale": 0.5}, {"freeze": ["encoder"]})
    plans = [plain, *(plan_of(store, {"sha256": start, **one}) for one in options)]
    assert len({training_fingerprint(plan) for plan in plans}) == 4


@pytest.mark.slow
def test_the_model_file_lists_all_its_ancestors(store, start, tmp_path):
    second = kept(trained(plan_of(store, {"sha256": start}), store), tmp_path)
    third = trained(plan_of(store, {"sha256": second}), store)
    path = tmp_path / "third.safetensors"
    save_artefact(path, third.ema.state_dict(), plan_artefact(third.plan))
    artefact = read_artefact(path)
    assert [one.sha256 for one in artefact.lineage] == [second, start]
    nearest = artefact.lineage[0]
    assert (nearest.data, nearest.digest, nearest.step) == ("digits", store.digest, 12)
    assert artefact.train["init_from"] == {"sha256": second, "freeze": [], "lr_scale": 1.0}
    other = artefact.model_copy(update={"lineage": ()})
    assert other.model_sha256 != artefact.model_sha256


def test_frozen_parts_stay_and_others_learn(store, start):
    plan = plan_of(store, {"sha256": start, "freeze": ["encoder", "time.0"]}, train={"weight_decay": 0.1})
    before = {name: one.clone() for name, one in new_state(plan, CPU).network.state_dict().items()}
    state = trained(plan, store)
    for network in (state.network, state.ema):
        moved = {name for name, one in network.state_dict().items() if not torch.equal(one, before[name])}
        assert not any(name.startswith(("encoder.", "time.0.")) for name in moved)
        assert {"stem.weight", "time.2.weight", "head.weight"} <= moved


def test_pretrained_weights_learn_at_their_own_rate(store, start):
    meta = {**store.meta, "classes": ["zero", *store.meta["classes"][1:]]}
    other = ImageStore(store.path, store.images, store.labels, meta)
    state = new_state(plan_of(other, {"sha256": start, "lr_scale": 0.25}), CPU)
    groups = {group["scale"]: group for group in state.optimizer.param_groups}
    assert groups.keys() == {0.25, 1.0}
    assert [one.shape for one in groups[1.0]["params"]] == [state.network.classes.weight.shape]
    rate = learning_rate(state.plan.train.lr, 11, state.plan.train.steps)
    trained_groups = trained(state.plan, other).optimizer.param_groups
    assert {group["scale"]: group["lr"] for group in trained_groups} == {0.25: 0.25 * rate, 1.0: rate}


def test_resume_of_a_fine_tuning_is_bitwise_equal(store, start, tmp_path):
    plan = plan_of(store, {"sha256": start, "freeze": ["stem"], "lr_scale": 0.5})
    whole = trained(plan, store)
    with open_run(tmp_path / "runs", "a") as folder:
        run_until(new_state(plan, CPU), store, 7, folder.writer.save)
        state = new_state(plan, CPU)
        restore(folder, state)
        assert state.step == 7
        run(state, store)
    assert_same(state, whole)


@pytest.mark.parametrize(
    ("pinned", "changes", "message"),
    [
        ({"freeze": ["head", "tail"]}, {}, r"no 'tail'; the parts are classes, decoder, encoder, head"),
        (
            {"freeze": ["classes", "decoder", "encoder", "head", "middle", "norm", "stem", "time"]},
            {},
            "leaves nothing to train",
        ),
        ({}, {"model": {"channels": 16}}, r"model\.channels is 16"),
        ({}, {"process": {"prediction": "eps"}}, r"prediction is eps"),
        ({}, {"process": {"timesteps": 50}}, r"timesteps is 50"),
        ({"sha256": "0" * 64}, {}, r"start/0000000000000000\.safetensors"),
    ],
)
def test_an_unusable_start_is_refused_before_training(store, start, pinned, changes, message):
    with pytest.raises(PretrainedRefused, match=message):
        plan_of(store, {"sha256": start, **pinned}, **changes)


def test_a_replaced_or_damaged_start_is_refused(store, start):
    (path,) = STARTS.iterdir()
    whole = path.read_bytes()
    loaded = load_model(path)
    save_artefact(path, loaded.network.state_dict(), loaded.artefact.model_copy(update={"step": 13}))
    with pytest.raises(PretrainedRefused, match="another model"):
        plan_of(store, {"sha256": start})
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PretrainedRefused, match="safetensors"):
        plan_of(store, {"sha256": start})
    changed = bytearray(whole)
    changed[-3] ^= 1
    path.write_bytes(changed)
    plan = plan_of(store, {"sha256": start})  # reads the metadata alone
    with pytest.raises(DiffctlError):
        new_state(plan, CPU)
