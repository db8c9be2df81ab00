"""What a verdict compares, and the changes that it refuses."""

from pathlib import Path

import pytest
import yaml

from diffusion.layout import GRIDS
from diffusion.protocol.learned_grid import LearnedGrids
from diffusion.verdict.arms import Arm, find_subject
from tests.conftest import params, write_params
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.prepared import copy_data

REFUSED = {
    "train.stepz=1": "unknown key",
    "model.channels=9": "channels",
    "train.seed=7": "nothing to judge",  # a pair's seed replaces it
    "train.log_every=1": "nothing to judge",
    "sample.num_images=30": "what is scored",
    "sample.seed=1": "what is scored",
    "evaluate.reference=test": "what is scored",
    "data.name=cifar10": "what is scored",
    "sample.classes=data": "which images are made",
    "model.low_res=4": "enlarges real images",
}
LOSSES = {
    "process.prediction=x0": "the loss itself (process.prediction",
    "process.weighting=min-snr": "the loss itself (process.weighting",
    "train.val_images=4 train.batch_size=4": "train.val_images",
    "train.val_every=null train.batch_size=4": "train.val_every",
    "sample.spacing=trailing": "of the sampling alone",
}


def test_changes_that_cannot_be_judged_are_refused(project: Path, invoke: Invoke) -> None:
    copy_data(project)
    for change, words in REFUSED.items():
        assert_refused(invoke("verdict", change), change.partition("=")[0], words)
    assert_refused(
        invoke("verdict", "sample.spacing=trailing", "train.batch_size=4"), "one of them at a time"
    )
    assert_refused(invoke("verdict", "sample.spacing=trailing"), "models/model.safetensors", "missing")
    both = ("verdict", "sample.spacing=trailing", "train.batch_size=4", "--each")
    assert_refused(invoke(*both), "sample.spacing=trailing", "separately")
    assert_refused(
        invoke("verdict", "train.batch_size=4", "--cell", "steps9-eta0"), "steps9-eta0", "steps3-eta1"
    )
    for change, words in LOSSES.items():
        assert_refused(invoke("verdict", *change.split(), "--metric", "loss"), "--metric loss", words)
    for quantity in ("time", "flops"):
        for change, words in (
            ("sample.spacing=trailing", "sampling alone"),
            ("train.steps=4", "train.steps"),
        ):
            assert_refused(invoke("verdict", change, "--equal", quantity), f"--equal {quantity}", words)
    assert_refused(invoke("verdict", "train.batch_size=4"), "data/reference")
    assert not (project / "runs").exists()


def test_options_without_a_meaning_are_refused(project: Path, invoke: Invoke) -> None:
    assert_refused(invoke("verdict"), "nothing to judge")
    for pairs in ("1..3", "5..4", "3..51", "3", "3-4"):
        assert_refused(invoke("verdict", "train.steps=4", "--pairs", pairs), "--pairs", pairs)
    assert_refused(invoke("verdict", "train.steps=4", "--budget", "20"), "--budget", "20m")
    assert_refused(invoke("verdict", "no-profile"), "no-profile")
    assert_refused(invoke("verdict", "train.steps=4", "--against", "no-file"), "no-file")


@pytest.mark.parametrize(
    ("field", "value", "subject"),
    [
        ("train.steps", 5, "training"),
        ("process.t_sampler", "logit-normal", "training"),
        ("data.flip", True, "training"),
        ("sample.spacing", "trailing", "sampling"),
        ("sweep.steps", [2, 5], "sampling"),
        ("sweep.eta", [1.0], "sampling"),
    ],
)
def test_subject_of_a_change(project: Path, field: str, value: object, subject: str) -> None:
    copy_data(project)
    values = params()
    section, name = field.split(".")
    changed = {**values, section: {**values[section], name: value}}
    assert find_subject(Arm("control", values), Arm("change", changed), None) == subject


def test_arms_of_a_pair_differ_in_the_change_alone() -> None:
    values = params(search={"fields": {"train.seed": [0, 1]}, "method": "grid"})
    changed = {**values, "train": {**values["train"], "steps": 5, "seed": 9}}
    control, change = Arm("control", values), Arm("change", changed)
    cell = control.cell(None)
    assert (cell.steps, cell.eta) == (3, 0.0)  # the first one with the most steps
    pair = [arm.pair_values((4, 2), cell, 50) for arm in (control, change)]
    assert pair[1] == {**pair[0], "train": {**pair[0]["train"], "steps": 5}}
    assert (pair[0]["train"]["seed"], pair[0]["sample"]["seed"], pair[0]["sample"]["num_images"]) == (
        4,
        2,
        50,
    )
    written = Arm("written", yaml.safe_load(yaml.safe_dump(pair[0])))
    assert [written.cell(None)] == [cell]
    assert written.config.sweep.steps == (3,)
    assert "search" not in pair[0]


def test_cells_of_ema_profiles_are_refused(project: Path, invoke: Invoke) -> None:
    profiles, sweep = {"ema_profiles": {"every": 6}}, {"steps": [3], "eta": [0.0], "ema": [0.1]}
    write_params(project, train=profiles, sweep=sweep)
    copy_data(project)
    assert_refused(invoke("verdict", "train.batch_size=4"), "steps3-eta0-ema0.1", "EMA profiles", "--cell")


def test_learned_times_of_the_project_are_refused_where_other_models_are_trained(
    project: Path, invoke: Invoke
) -> None:
    grids = LearnedGrids(model_sha256="0" * 64, learned={}, levels={3: (9.0, 0.5, 0.1)})
    Path(GRIDS).write_text(grids.model_dump_json())
    sample = {"spacing": "learned", "spacing_options": {"file": str(GRIDS)}}
    search = {"trials": 1, "fields": {"train.lr.rate": [0.001, 0.002]}}
    write_params(project, sample=sample, sweep={"steps": [3], "eta": [0.0]}, search=search)
    copy_data(project)
    assert_refused(invoke("verdict", "train.batch_size=4"), "a verdict trains other models", "spacing")
    assert_refused(invoke("search"), "a search trains other models", "spacing")
