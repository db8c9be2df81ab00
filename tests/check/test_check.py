"""`diffctl check`: findings about data, model, disk and sampling, and the refusals of `preflight`."""

import json

import pytest
import torch

from diffusion.check import check, preflight
from diffusion.check.findings import Project
from diffusion.config import load
from diffusion.layout import MODEL
from diffusion.model import counted_passes
from diffusion.model.counted_passes import activation_bytes
from diffusion.model.model_file import save_artefact
from diffusion.model.network_registry import build_network
from diffusion.model.unet import UNet
from diffusion.system.errors import UsageError
from diffusion.train.plan import plan_artefact, plan_training
from tests.conftest import ROOT, write_params
from tests.helpers.checks import configuration, with_level
from tests.helpers.prepared import copy_data

PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


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
    unknown = configuration(evaluate={"extractor": "inception-v3-compat", "weights_sha256": "a" * 64})
    (error,) = (one for one in check(unknown) if one.subject == "extractor")
    assert (error.level, "would be downloaded" in error.message) == ("error", True)


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
    assert preflight(configuration(train={"precision": other}), "report") == []
    with pytest.raises(UsageError, match=r"other settings \(train\.steps 12 → 7\)"):
        preflight(configuration(train={"steps": 7}), "report")
