"""Checks of the files that stages depend on: guides, base, learned times."""

import shutil

import pytest
import yaml

from diffusion.check import check, preflight
from diffusion.check.dependency_checks import check_base, check_dependencies, check_guides, check_times
from diffusion.check.findings import Project
from diffusion.layout import MODEL
from diffusion.model.model_file import read_artefact, save_artefact
from diffusion.model.network_registry import build_network
from diffusion.system.errors import UsageError
from diffusion.train.plan import plan_artefact
from tests.conftest import ROOT
from tests.helpers.checks import configuration
from tests.helpers.networks import small_model
from tests.helpers.prepared import copy_data


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
