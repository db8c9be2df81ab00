"""What a verdict compares, and the changes that it refuses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from cli.actions.trials import trial_process
from cli.actions.trials.verdict_arms import check_options, identify, read_arms
from cli.actions.trials.verdict_trials import Job, VerdictTrials
from cli.trials.trial_commands import Verdict
from diffusion.code_digest import module_digests
from diffusion.config import load
from diffusion.layout import GRIDS, MODEL, PARAMS
from diffusion.model.model_file import read_artefact
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.learned_grid import LearnedGrids
from diffusion.system.errors import DiffctlError
from diffusion.system.params import with_fields
from diffusion.trials import trial_inputs
from diffusion.trials.trial_inputs import changed_inputs, inputs_of_scores
from diffusion.trials.trial_runs import Trial, TrialResult, TrialRunner, trial_dir, write_result
from diffusion.verdict.arms import Arm, find_subject
from tests.conftest import params, write_params
from tests.helpers.invoke import Invoke, assert_refused
from tests.helpers.networks import small_model, with_model
from tests.helpers.prepared import copy_data, copy_reference, reverse_held_out_images
from tests.helpers.scores_document import document

REFUSED = {
    "train.stepz=1": "unknown key",
    "model.channels=9": "channels",
    "train.seed=7": "the control's seed",
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


@pytest.mark.slow
def test_changes_that_cannot_be_judged_are_refused(project: Path, invoke: Invoke) -> None:
    copy_data(project)
    for change, words in REFUSED.items():
        assert_refused(invoke("verdict", change), change.partition("=")[0], words)
    assert_refused(
        invoke("verdict", "sample.spacing=trailing", "train.batch_size=4"), "one of them at a time"
    )
    assert_refused(invoke("verdict", "sample.spacing=trailing"), "models/model.safetensors", "missing")
    for section, field, value in (("evaluate", "confidence_intervals", False), ("sample", "num_images", 2)):
        write_params(project, **{section: {field: value}})
        assert_refused(invoke("verdict", "sample.spacing=trailing"), f"{section}.{field}", "intervals")
    write_params(project)
    both = ("verdict", "sample.spacing=trailing", "train.batch_size=4", "--each")
    assert_refused(invoke(*both), "sample.spacing=trailing", "separately")
    assert_refused(
        invoke("verdict", "train.batch_size=4", "--cell", "steps9-eta0"), "steps9-eta0", "steps3-eta1"
    )
    for change, words in LOSSES.items():
        assert_refused(invoke("verdict", *change.split(), "--metric", "loss"), "--metric loss", words)
    for option in (["--pairs", "3..12"], ["--budget", "20m"], ["--stratified"], ["--ray"]):
        assert_refused(invoke("verdict", "sample.spacing=trailing", *option), option[0], "sampling alone")
    for quantity in ("time", "flops"):
        for change, words in (
            ("sample.spacing=trailing", "sampling alone"),
            ("train.steps=4", "train.steps"),
        ):
            assert_refused(invoke("verdict", change, "--equal", quantity), f"--equal {quantity}", words)
    devices = invoke("verdict", "train.batch_size=4", "train.devices=2", "--ray")
    assert_refused(devices, "train.devices", "--ray")
    assert_refused(invoke("verdict", "train.batch_size=4"), "data/reference")
    write_params(
        project, process={"schedule": "edm", "loss": "consistency", "loss_options": {"stage_steps": 2}}
    )
    for options in (["train.steps=4"], ["train.batch_size=4", "--equal", "flops"]):
        assert_refused(invoke("verdict", *options, "--metric", "loss"), "the loss has stages")
    write_params(project, process={"loss": "contrastive", "variance": "small"})
    by_loss = invoke("verdict", "train.batch_size=4", "--metric", "loss")
    assert_refused(by_loss, "changes the loss itself (train.batch_size")
    assert not (project / "runs/verdict").exists()


def test_missing_file_of_a_change_is_refused_before_any_sampling(project: Path, invoke: Invoke) -> None:
    copy_reference(project)
    with_model(project)
    assert_refused(invoke("verdict", "sample.guidance=1", "sample.guide=models/weak.safetensors"), "weak")
    assert not any(project.glob("runs/verdict/*/arm*"))


def test_missing_data_and_reference_are_one_refusal(project: Path, invoke: Invoke) -> None:
    assert_refused(invoke("verdict", "train.batch_size=4"), "data/prepared", "`dvc repro reference`")


def test_options_without_a_meaning_are_refused(project: Path, invoke: Invoke) -> None:
    assert_refused(invoke("verdict"), "nothing to judge")
    assert_refused(invoke("verdict", "train.steps=4", "train.steps=5"), "train.steps is given twice")
    for pairs in ("1..3", "5..4", "3..51", "3", "3-4"):
        assert_refused(invoke("verdict", "train.steps=4", "--pairs", pairs), "--pairs", pairs)
    assert_refused(invoke("verdict", "train.steps=4", "--budget", "20"), "--budget", "20m")
    assert_refused(invoke("verdict", "train.lr"), "no KEY=VALUE, no profile and no file train.lr")
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
        ("sample.clip", False, "sampling"),
    ],
)
def test_subject_of_a_change(project: Path, field: str, value: object, subject: str) -> None:
    copy_data(project)
    values = params()
    section, name = field.split(".")
    changed = {**values, section: {**values[section], name: value}}
    assert find_subject(Arm("control", values), Arm("change", changed), None) == subject


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train.optimizer": "muon", "train.seed": 7}, "train.optimizer adamw → muon"),
        ({"train.optimizer_options": {"beta2": 0.9}}, "train.optimizer_options.beta2 0.999 → 0.9"),
        ({"process.stratified": True}, "process.stratified false → true"),
        ({"process.t_sampler": "logit-normal"}, "process.t_sampler uniform → logit-normal"),
        ({"sample.base": {"file": "a"}, "model.low_res": 4},
         "model.low_res null → 4, sample.base.file not set → a"),
    ],
)  # fmt: skip
def test_differences_have_the_defaults(change: dict[str, object], text: str) -> None:
    control = Arm("control", params())
    assert ", ".join(Arm("change", with_fields(params(), change)).differences(control)) == text


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
    write_params(
        project,
        train=profiles,
        sweep=sweep,
        search={"fields": {"train.batch_size": [4, 8]}, "method": "grid"},
    )
    copy_data(project)
    for command in (("verdict", "train.batch_size=4"), ("search",)):
        assert_refused(invoke(*command), "steps3-eta0-ema0.1", "EMA profiles", "another cell")
    by_loss = Verdict(changes=["train.batch_size=4"], metric="loss")
    check_options(by_loss, read_arms(by_loss), "training")  # it samples no cell


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


def test_each_arm_is_sampled_as_its_own_cell_says(tmp_path: Path) -> None:
    guided = {"guidance": 2.0}
    control = Arm("control", params(sample=guided, train={"p_uncond": 0.1}))
    sweep = {"steps": [3], "eta": [0.0], "guidance": [2.0]}
    change = Arm("change", params(train={"p_uncond": 0.1, "batch_size": 4}, sweep=sweep))
    trials, seen = VerdictTrials(tmp_path, [control, change], None, 5, "fd"), []

    def run(trial: Trial) -> TrialResult:
        config = load(trial_dir(tmp_path, trial.number) / PARAMS)
        seen.extend(cell_settings(config.sample, cell) for cell in grid(config.sample, config.sweep))
        write_result(trial_dir(tmp_path, trial.number), result := TrialResult("failed", reason="a test"))
        return result

    trials.run([Job(0, 0), Job(0, 1)], TrialRunner(run))
    assert seen[0].guidance == 2.0
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_verdict_is_another_one_after_a_change_of_what_decides_scores(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_data(project)
    write_params(project, sample={"guidance": 1.0, "guide": "guide.safetensors"})
    options = Verdict(changes=["train.batch_size=4"])

    def key() -> str:
        return identify(read_arms(options), options, "training", {})[1].key

    small_model(Path("guide.safetensors"))
    keys = [key(), key()]
    small_model(Path("guide.safetensors"), seed=1)
    keys.append(key())
    monkeypatch.setattr("diffusion.protocol.extractors.EVALUATION_VERSION", 99)
    keys.append(key())
    reverse_held_out_images()
    keys.append(key())
    monkeypatch.setattr("diffusion.trials.trial_inputs.torch_version", lambda: "0.1")
    keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_a_verdict_on_samples_is_of_its_model_and_guides(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another guide is another verdict, and a file that is replaced during the sampling is refused."""
    copy_reference(project)
    with_model(project)
    guide = small_model(Path("guide.safetensors"))
    options = Verdict(changes=["sample.guidance=1", f"sample.guide={guide}"])
    arms = read_arms(options)
    about, same = (identify(arms, options, "sampling", {})[1] for _ in range(2))
    small_model(guide, seed=1)
    assert about.key == same.key != identify(arms, options, "sampling", {})[1].key
    inputs = about.inputs[1]
    scored = document({(3, 0.0): 0.3}, model_sha256=inputs["model"], guide_sha256=inputs["guide"])
    monkeypatch.setattr(trial_process, "score_grid", lambda *ignored: scored)
    score = partial(trial_process.score_trial, arms[1].config, MODEL, project, about)
    assert score(inputs) == scored
    for name in ("model", "guide"):
        with pytest.raises(DiffctlError, match=f"the file of the {name} was replaced"):
            score({**inputs, name: "0" * 64})


@pytest.mark.parametrize(
    ("name", "value"), [("torch_version", lambda: "0.1"), ("syntax_digest", lambda tree: "another code")]
)
def test_a_verdict_by_the_loss_is_another_one_after_a_change_of_what_decides_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Callable[..., str]
) -> None:
    copy_data(project)
    options = Verdict(changes=["train.batch_size=4"], metric="loss")

    def key() -> str:
        return identify(read_arms(options), options, "training", {})[1].key

    keys = [key(), key()]
    write_params(project, train={"val_images": 4})
    keys.append(key())
    monkeypatch.setattr(f"diffusion.trials.trial_inputs.{name}", value)
    keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.slow
def test_scores_depend_on_the_code_of_their_modules_and_of_the_base(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_data(project)
    write_params(project, model={"low_res": 4}, sample={"base": {"file": "base.safetensors"}})
    base = small_model(Path("base.safetensors"), image_size=4, attention_resolutions=())
    (arm, _) = read_arms(Verdict(changes=["train.batch_size=4"]))
    inputs = partial(
        inputs_of_scores, arm.config.sample, arm.config.evaluate, arm.plan, [arm.cell(None)], base
    )
    before = inputs()
    assert before["base"] == read_artefact(base).model_sha256
    monkeypatch.setattr(
        trial_inputs, "module_digests", lambda *roots: {"diffusion.evaluate.scores.scorer": "0"}
    )
    after = inputs()
    assert changed_inputs([before], [after]) == ["code of the scores"]
    small_model(base, seed=1, image_size=4, attention_resolutions=())
    third = inputs()
    assert changed_inputs([before, after], [third, after]) == ["base"]
    assert "diffusion.evaluate.scores.frechet" in module_digests("diffusion.evaluate.sweep_scores")
