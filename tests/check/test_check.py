"""`diffctl check`: findings about data, model, disk and sampling, and the refusals of `preflight`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cli.stages.context import enter_stage
from diffusion.check import check, check_guidance, check_rules, check_spacing, preflight
from diffusion.check.dependency_checks import check_base, check_dependencies, check_guides, check_times
from diffusion.check.findings import Project
from diffusion.check.trial import check_trial
from diffusion.config import load, parse
from diffusion.data.prepare import prepare
from diffusion.images.store import write_store
from diffusion.layout import MODEL, PREPARED
from diffusion.model import counted_passes
from diffusion.model.counted_passes import activation_bytes
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.network_registry import build_network
from diffusion.model.unet import UNet
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.plan import plan_artefact
from diffusion.train.planning import plan_training
from tests.conftest import ROOT, params, write_params
from tests.helpers.networks import small_model
from tests.helpers.prepared import copy_data
from tests.helpers.raw_data import random_images, write_cifar100, write_folder

PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty working directory and home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def configuration(**changes):
    return parse(params(**changes), "params")


def with_level(findings, level):
    return {finding.subject: finding for finding in findings if finding.level == level}


def prepared_as(images, labels, classes, **meta):
    """Write these images as prepared data under the digits profile's name, both splits alike."""
    counts = [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
    shape = {"image_size": images.shape[1], "channels": images.shape[3]}
    values = {"name": "digits", "classes": classes, "counts": counts, "sources": {}, "options": {}}
    values |= {**shape, **meta}
    for split in ("train", "test"):
        write_store(PREPARED / split, images, labels, {**values, "split": split})


@pytest.mark.slow
def test_command_prints_findings_and_sets_the_exit_code(project, invoke):
    good = invoke("check")
    assert (good.code, "0 errors, 0 warnings" in good.out) == (0, True)
    found = {one["subject"] for one in json.loads(invoke("check", "--json").out)}
    assert found >= {"raw data", "prepared data", "memory", "disk", "extractor"}
    write_params(project, train={"batch_size": 4000})
    bad = invoke("check", "--json")
    assert bad.code == 1
    assert "\n1 error, " in invoke("check").out
    errors = [finding for finding in json.loads(bad.out) if finding["level"] == "error"]
    assert [error["subject"] for error in errors] == ["batch"]
    assert errors[0]["remedy"]


def test_counts_sizes_and_channel_statistics_are_reported(tmp_path):
    images = np.zeros((10, 8, 8, 1), dtype=np.uint8)
    images[:5] = 200
    prepared_as(images, np.array([0] * 7 + [1] * 3), ["a", "b"])
    text = " ".join(one.message for one in check(configuration()) if one.subject == "train")
    assert "10 images of 8×8×1, 2 classes with 3 to 7 each" in text
    assert "channels 100±100 of 255" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0] * 9 + [2], "classes": ["a", "empty", "c"]}, "1 classes without an image: empty"),
        ({"duplicates": {"within": 3}}, "3 images are exact copies"),
        ({"duplicates": {"of_train": 2}}, "2 images are in the training split too"),
        ({"skipped": {"truncated": 4}}, "4 truncated"),
        ({"image": 7}, "every pixel has the same value"),
        ({"channels": 3}, "all images are grey but stored as RGB"),
    ],
)
def test_suspicious_data_cause_warnings(tmp_path, change, message):
    channels = change.pop("channels", 1)
    images = np.repeat(random_images(0, 10, 8, 1), channels, axis=3)
    if "image" in change:
        images[:] = change.pop("image")
    labels = np.array(change.pop("labels", [0] * 10))
    config = configuration(data={"on_bad": "skip" if "skipped" in change else "stop", "channels": channels})
    prepared_as(images, labels, change.pop("classes", ["a"]), **change)
    warnings = [finding.message for finding in check(config) if finding.level == "warning"]
    assert any(message in warning for warning in warnings)


@pytest.mark.parametrize(("spacing", "warned"), [("uniform", True), ("trailing", True), ("karras", False)])
def test_spacing_even_in_sigma_causes_a_warning(spacing, warned):
    config = parse({**params(sample={"spacing": spacing}), "process": {"schedule": "edm"}}, "params")
    found = [finding.remedy for finding in check_spacing(Project(config))]
    assert found == ["use spacing karras"] * warned


@pytest.mark.parametrize(
    ("loss", "guidance", "warned"),
    [("contrastive", 1, True), ("contrastive", 0, False), ("simple", 1, False)],
)
def test_guidance_of_a_model_with_the_contrastive_loss_causes_a_warning(loss, guidance, warned):
    sections = {"process": {"loss": loss, "variance": "small"}, "sample": {"guidance": guidance}}
    config = configuration(**sections, train={"p_uncond": 0.1})
    assert ["contrastive" in one.message for one in check_guidance(Project(config))] == [True] * warned


def test_conditional_model_needs_labels(tmp_path):
    prepared_as(random_images(0, 20, 8, 1), None, [])
    error = with_level(check(configuration()), "error")["model"]
    assert "model.class_cond" in error.message


def test_damaged_prepared_data_are_an_error(project):
    copy_data(project)
    Path("data/prepared/train/meta.json").write_bytes(b"{")
    error = with_level(check(load()), "error")["prepared data"]
    assert "diffctl stage data" in error.remedy
    with pytest.raises(DiffctlError):
        preflight(load(), "train")


CIFAR100 = {"name": "cifar100", "image_size": 8, "labels": "fine"}
FOLDER = {"name": "image-folder", "image_size": 8, "on_bad": "skip"}


@pytest.mark.parametrize(
    ("before", "change", "fits"),
    [
        (CIFAR100, {"labels": "coarse"}, False),
        (CIFAR100, {"image_size": None}, False),
        (CIFAR100, {"channels": 3}, True),
        (CIFAR100, {"channels": 1}, False),
        (CIFAR100, {"flip": True, "on_bad": "skip"}, True),
        ({**CIFAR100, "image_size": None}, {"image_size": 32}, True),
        (FOLDER, {"test_fraction": 0.4}, False),
        (FOLDER, {"on_bad": "stop"}, False),
        ({**FOLDER, "good": True}, {"on_bad": "stop"}, True),
    ],
)
def test_prepared_data_fit_until_a_deciding_option_changes(tmp_path, before, change, fits):
    before, raw = dict(before), tmp_path / "raw"
    if before["name"] == "cifar100":
        write_cifar100(raw, random_images(0, 20, 32), np.arange(20), np.arange(20), 5)
    else:
        write_folder(raw, {f"a/{at}": image for at, image in enumerate(random_images(0, 9, 8))})
        if not before.pop("good", False):
            (raw / "a/bad.png").write_text("no image")
    config = configuration(data={**before, "path": str(raw)}, model={"attention_resolutions": []})
    prepare(config.data, PREPARED, work=Path("work"))
    shutil.copytree(raw, tmp_path / "moved")
    for path, fits_path in (("raw", True), ("moved", False)):
        moved = {**before, **change, "path": str(tmp_path / path)}
        after = configuration(data=moved, model={"attention_resolutions": []})
        assert Project(after).is_ready is (fits and fits_path)
        warnings = with_level(check(after), "warning")
        assert ("with other options" in str(warnings.get("prepared data"))) is not (fits and fits_path)


def folder_of(raw, on_bad="stop"):
    """A configuration with this folder of images."""
    data = {"name": "image-folder", "path": str(raw), "image_size": 8, "on_bad": on_bad}
    return configuration(data=data, train={"batch_size": 4})


def test_changed_raw_data_are_reported_and_missing_ones_are_an_error_until_prepared(tmp_path):
    pool = random_images(0, 20, 8)
    raw = write_folder(tmp_path / "raw", {f"{'ab'[at % 2]}/{at}": image for at, image in enumerate(pool)})
    config = folder_of(raw)
    prepare(config.data, PREPARED, work=Path("work"))
    assert "prepared data" not in with_level(check(config), "warning")
    write_folder(raw, {"a/more": pool[0]})
    assert "have changed" in with_level(check(config), "warning")["prepared data"].message
    shutil.rmtree(raw)
    assert not with_level(check(config), "error")
    assert "not a folder" in with_level(check(folder_of(tmp_path / "rwa")), "error")["raw data"].remedy
    write_params(tmp_path, data={"name": "image-folder", "path": "rwa", "image_size": 8})
    for stage in ("reference", "train", "sample", "evaluate", "report"):
        with (
            pytest.raises(UsageError, match=r"other options .* \(data.path /.*raw → rwa\)"),
            enter_stage(stage),
        ):
            pass
    shutil.rmtree(tmp_path / "data")
    assert str(raw) in with_level(check(config), "error")["raw data"].remedy


def test_bad_raw_files_follow_on_bad(tmp_path):
    pool = random_images(0, 9, 8)
    raw = write_folder(tmp_path / "raw", {f"a/{at}": image for at, image in enumerate(pool)})
    (raw / "empty").mkdir()
    for on_bad, level in (("stop", "error"), ("skip", "warning")):
        found = with_level(check(folder_of(raw, on_bad)), level)
        assert "1 empty class (empty)" in found["raw data"].message


@pytest.mark.slow
@pytest.mark.parametrize("quick", [0, 10**12])
def test_saved_bytes_equal_those_of_autograd(quick, monkeypatch):
    """Compare fake and real forward passes with the tensors that autograd saves for six images."""
    monkeypatch.setattr(counted_passes, "QUICK", quick)
    counted_passes._counted_passes.cache_clear()
    config = configuration(model={"dropout": 0.1})
    meta = {"name": "x", "image_size": 8, "channels": 1, "classes": ["a"], "counts": [1], "digest": ""}
    spec = plan_training(config, meta, torch.device("cpu")).network
    real, held = UNet(spec), {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        labels = torch.zeros(6, dtype=torch.int64)
        real(torch.randn(6, 1, 8, 8), labels, labels)
    weights = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}
    counted = sum(storage.nbytes() for address, storage in held.items() if address not in weights)
    assert activation_bytes(spec, 6) == counted


def test_weights_of_each_space_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"something else")
    further = {"extractor": "inception-v3-spatial", "weights": str(wrong), "weights_sha256": "a" * 64}
    findings = check(configuration(evaluate={"extra_extractors": ["inception-v3-compat", further]}))
    about = [finding for finding in findings if finding.subject == "extractor"]
    assert [finding.level for finding in about] == ["ok", "warning", "error"]
    assert "inception-v3-compat" in about[1].message
    assert str(wrong) in about[2].message


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid(name, tmp_path):
    config = load(ROOT / f"profiles/{name}.yaml")
    assert name.startswith(config.data.name)
    errors = with_level(check(config), "error")
    assert errors.keys() <= {"raw data", "memory", "disk"}
    if name in ("digits", "fashion-mnist", "cifar10", "cifar100"):
        assert "raw data" not in errors


def test_preflight_returns_warnings_and_raises_the_first_error(project):
    copy_data(project)
    assert preflight(load(), "train") == []
    few = configuration(sample={"num_images": 5000})
    assert [warning.subject for warning in preflight(few, "train")] == ["evaluation"]
    with pytest.raises(UsageError, match="more than the 1,297 training images: set train"):
        preflight(configuration(train={"batch_size": 2000}), "train")


def test_interval_without_a_step_is_a_warning(project):
    axis = {"guidance": [0, 2], "guidance_interval": [[1e-5, 1e-4], None, [0.1, 100]]}
    sections = {"train": {"p_uncond": 0.1}, "sweep": {"steps": [2, 50], "eta": [0.0], **axis}}
    found = with_level(check(configuration(**sections)), "warning")
    limited = "eta0-guidance2-guidance_interval"
    # Two steps are at both ends of the noise.
    cells = f"steps2-{limited}_1e-05_0.0001, steps2-{limited}_0.1_100, steps50-{limited}_1e-05_0.0001"
    assert found["sampling"].message == f"guidance applies at no step of {cells}"


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"sweep": {"eta": [1.5]}}, "eta 1.5 does not fit 2 steps: give 0 to 1.0"),
        (
            {
                "sample": {"spacing": "karras", "spacing_options": {"sigma_max": 1e6}},
                "sweep": {"steps": [5], "eta": [0.0]},
            },
            r"1e\+06 do not fit process",
        ),
    ],
)
def test_impossible_steps_are_refused(project, sections, match):
    config = configuration(**sections)
    assert "sampling" in with_level(check(config), "error")
    for stage in ("train", "sample"):
        with pytest.raises(UsageError, match=match):
            preflight(config, stage)


def test_model_without_the_configured_snapshots_will_be_trained_again(project):
    config = configuration()
    plan = Project(config).plan
    save_artefact(project / MODEL, build_network(plan.network).state_dict(), plan_artefact(plan))
    assert Project(config).is_trained
    guide = {"guidance": 1.0, "guide": "ema:0.1@1"}
    with_profile = configuration(train={"ema_profiles": {"sigma_rel": [0.1], "every": 1}}, sample=guide)
    assert not Project(with_profile).is_trained
    assert with_level(check(with_profile), "error") == {}


def test_report_of_a_model_of_other_settings_is_refused(project):
    copy_data(project)
    config = configuration()
    plan = Project(config).plan
    other = "bf16" if plan.precision == "fp32" else "fp32"  # trained on another machine
    made = plan_artefact(plan).model_copy(update={"precision": other})
    save_artefact(project / MODEL, build_network(plan.network).state_dict(), made)
    assert preflight(config, "report") == []
    with pytest.raises(UsageError, match=r"other settings \(train\.steps 12 → 7\)"):
        preflight(configuration(train={"steps": 7}), "report")


def test_guides_must_exist_fit_and_be_dependencies_of_the_stage(project, monkeypatch):
    monkeypatch.setattr(Project, "is_trained", True)
    small_model(project / MODEL)
    shutil.copy(ROOT / "dvc.yaml", project)
    config = configuration(sample={"guidance": 1.0, "guide": "guides/early.safetensors"})

    def errors() -> list[str]:
        checked = Project(config)
        return [str(one.message) for one in (*check_dependencies(checked), *check_guides(checked))]

    first, second = errors()
    assert "is no dependency of the stage sample" in first
    assert "there is no guide guides/early.safetensors" in second
    small_model(project / "guides/early.safetensors")
    assert len(errors()) == 1
    graph = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(graph.replace("- models/ema", "- models/ema\n      - guides"))
    assert errors() == []
    small_model(project / "guides/early.safetensors", in_channels=3, out_channels=6)
    assert ["takes 8×8×3 images" in message for message in errors()] == [True]


def test_a_missing_dependency_is_found_before_the_training(project):
    copy_data(project)
    small_model(project / "early.safetensors", channels=8)
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sample": {"deps": ["models"]}}}))
    with pytest.raises(UsageError, match=r"early\.safetensors is no dependency of the stage sample"):
        preflight(configuration(sample={"guidance": 1.0, "guide": "early.safetensors"}), "train")


def test_guides_are_checked_before_the_training(project):
    copy_data(project)
    guide, classifier = project / "guide.safetensors", "models/classifier.safetensors"
    guided = configuration(sample={"guidance": 1.0, "guide": guide.name})
    with pytest.raises(UsageError, match=r"there is no guide guide\.safetensors"):
        preflight(guided, "train")
    small_model(guide, in_channels=3, out_channels=6)
    with pytest.raises(UsageError, match="takes 8×8×3 images"):
        preflight(guided, "train")
    classified = configuration(sample={"guidance": 1.0, "classifier": classifier})
    with pytest.raises(UsageError, match=r"`diffctl stage classifier` makes it"):
        preflight(classified, "train")
    stages = {"sample": {"deps": [classifier]}, "later": {"outs": [{classifier: {"persist": True}}]}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert list(check_guides(Project(classified))) == []


def test_base_is_not_compared_with_the_placeholders_of_data_that_are_not_prepared(project):
    small_model(project / "base.safetensors", image_size=4, attention_resolutions=())
    shape = {"low_res": 4, "attention_resolutions": []}
    config = configuration(model=shape, sample={"base": {"file": "base.safetensors"}})
    assert list(check_base(Project(config))) == []
    copy_data(project)
    assert "other classes" in next(check_base(Project(config))).message


def test_missing_file_of_learned_times_hides_no_other_finding(project):
    config = configuration(sample={"spacing": "learned", "spacing_options": {"file": "grids.json"}})
    found = list(check(config))
    (error,) = [one for one in found if one.level == "error" and one.subject == "sampling"]
    assert "there is no file of learned times grids.json" in error.message
    assert {"extractor", "memory", "disk"} <= {one.subject for one in found}


def test_learned_times_of_another_model_are_found_before_the_training(project):
    copy_data(project)

    def times_of(model: str):
        options = {"levels": [9.0, 0.5], "model_sha256": model}
        sample = {"spacing": "learned", "spacing_options": options}
        return configuration(sample=sample, sweep={"steps": [2], "eta": [0.0]})

    config = times_of("0" * 64)
    (finding,) = check_times(Project(config))
    assert (finding.level, "a training is due" in finding.message) == ("warning", True)
    assert finding in preflight(config, "train")
    plan = Project(config).plan
    save_artefact(project / MODEL, build_network(plan.network).state_dict(), plan_artefact(plan))
    with pytest.raises(UsageError, match="the learned times are of model 0000"):
        preflight(config, "train")
    config = times_of(read_artefact(MODEL).model_sha256)
    assert list(check_times(Project(config))) == []
    older = [one.model_copy(update={"digest": "0" * 16}) for one in plan.code]
    save_artefact(project / MODEL, build_network(plan.network).state_dict(), plan_artefact(plan, older))
    assert [one.level for one in check_times(Project(config))] == ["warning"], "code has changed"


def test_guidance_rule_that_fits_only_some_samplers_is_refused_before_the_training(project):
    """The trial has both samplers, and the rule with the other one."""
    copy_data(project)
    sweep = {"steps": [2], "eta": [0.0], "sampler": ["ddim", "unipc"], "guidance": [0, 0.6]}
    rules = {"sample": {"guidance_rule": "cfg++"}, "train": {"p_uncond": 0.1}}
    config = configuration(sweep=sweep, **rules)
    assert "is of sampler ddim, not unipc" in with_level(check(config), "error")["sampling"].message
    for stage in ("train", "sample"):
        with pytest.raises(UsageError, match="is of sampler ddim, not unipc"):
            preflight(config, stage)


def test_cfg_zero_that_leaves_no_call_of_a_cell_is_refused():
    flow = {"process": {"schedule": "flow", "prediction": "flow"}, "train": {"p_uncond": 0.1}}
    sample = {"guidance_rule": "cfg-zero", "guidance_rule_options": {"zero_calls": 3}}
    sweep = {"steps": [3, 5], "eta": [0.0], "guidance": [1]}
    config = configuration(**flow, sample=sample, sweep=sweep)
    (error,) = check_rules(Project(config))
    assert "zero_calls 3 of cfg-zero is not below the 3 network calls" in error.message
    assert [one.level for one in check_trial(Project(config))] == ["ok"], "in two steps"


def test_impossible_noise_range_hides_no_other_finding(project):
    levels = {"spacing": "karras", "spacing_options": {"sigma_max": 1e6}}
    guided = {"guidance": 1.0, "guidance_interval": [0.1, 2]}
    found = list(check(configuration(sample={**levels, **guided}, train={"p_uncond": 0.1})))
    (error,) = [one for one in found if one.level == "error"]
    assert "do not fit process" in error.message
    assert {"trial", "memory", "disk", "cost"} <= {one.subject for one in found}


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"sample": {"spacing": "learned"}}, "cell steps2-eta0: spacing learned needs the times of a model"),
        (
            {"sweep": {"steps": [2], "eta": [0.0], "spacing": ["uniform", "learned"]}},
            "spacing learned needs the times of a model",
        ),
        (
            {
                "sample": {"spacing": "learned", "spacing_options": {"levels": [9.0, 0.5]}},
                "sweep": {"steps": [2, 4], "eta": [0.0]},
            },
            "cell steps4-eta0: steps 4 is not the number of learned times, 2",
        ),
    ],
)
def test_a_cell_that_cannot_be_sampled_is_refused_in_one_sentence(project, sections, match):
    copy_data(project)
    for stage in ("train", "sample"):
        with pytest.raises(UsageError, match=match):
            preflight(configuration(**sections), stage)


def test_a_rule_whose_guides_are_an_axis_is_accepted():
    sample = {"guidance": 1.0, "guidance_rule": "autoguidance"}
    sweep = {"steps": [2], "eta": [0.0], "guide": ["ema:0.1@300"]}
    train = {"steps": 300, "ema_profiles": {"sigma_rel": [0.1], "every": 300}}
    assert list(check_spacing(Project(configuration(sample=sample, sweep=sweep, train=train)))) == []


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        (
            {
                "process": {"schedule": "flow", "prediction": "flow"},
                "sample": {"guidance": 0.7, "guidance_rule": "cfg-zero"},
                "train": {"p_uncond": 0.1, "eval_every": 10, "eval_steps": 1},
            },
            "zero_calls 1 of cfg-zero",
        ),
        (
            {
                "sample": {"sampler": "unipc", "guidance": 0.6, "guidance_rule": "cfg++"},
                "sweep": {"sampler": ["ddim"]},
                "train": {"p_uncond": 0.1, "eval_every": 10},
            },
            "is of sampler ddim, not unipc",
        ),
    ],
)
def test_scores_that_no_training_would_have_are_refused_before_it(project, sections, match):
    copy_data(project)
    with pytest.raises(UsageError, match=f"train.eval_every would score nothing: .*{match}"):
        preflight(configuration(**sections), "train")


def test_the_shift_auto_is_that_of_the_images(project):
    """Of 8×8 images it is 1/8, so that steps 2 to 10 are below the interval."""
    copy_data(project)
    process = {"schedule": "flow", "prediction": "flow", "shift": "auto"}
    sample = {"guidance": 1.0, "guidance_interval": [1.5, 10]}
    sections = {"train": {"p_uncond": 0.1}, "sweep": {"steps": [10], "eta": [0.0]}}
    found = check_guidance(Project(configuration(process=process, sample=sample, **sections)))
    assert "guidance applies at no step of steps10" in next(found).message
