"""Checks of the cells of a sweep: steps, spacing, guidance."""

import pytest

from diffusion.check import check, check_guidance, check_rules, check_spacing, preflight
from diffusion.check.findings import Project
from diffusion.check.trial import check_trial
from diffusion.config import parse
from diffusion.system.errors import UsageError
from tests.conftest import params
from tests.helpers.checks import configuration, with_level
from tests.helpers.prepared import copy_data


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


def test_interval_without_a_step_is_a_warning(project):
    axis = {"guidance": [0, 2], "guidance_interval": [[1e-5, 1e-4], None, [0.1, 100]]}
    sections = {"train": {"p_uncond": 0.1}, "sweep": {"steps": [2, 50], "eta": [0.0], **axis}}
    found = with_level(check(configuration(**sections), (check_guidance,)), "warning")
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
    assert "sampling" in with_level(check(config, (check_spacing,)), "error")
    for stage in ("train", "sample"):
        with pytest.raises(UsageError, match=match):
            preflight(config, stage)


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
