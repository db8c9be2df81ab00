"""The cost of a configuration: operations by closed forms, and measured time."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from diffusion.check import cost_estimate
from diffusion.check.cost_estimate import check_cost, check_time, format_duration, passes
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import MODEL_BYTES, STATE_BYTES
from diffusion.check.timing import TimeRange, time_work
from diffusion.config import parse
from diffusion.model.counted_passes import count_parameters, forward_flops
from diffusion.model.model_file import read_artefact
from diffusion.model.unet import UNet
from diffusion.show.network_table import model
from diffusion.system.errors import UsageError
from diffusion.train.classifier_training import ClassifierPlan
from diffusion.train.plan import TrainPlan
from tests.conftest import params, write_params
from tests.helpers.invoke import Invoke
from tests.helpers.networks import small_model, spec_of

CLASSIFIER = {
    "model": {"channels": 8, "channel_mult": [1, 2]},
    "train": {"steps": 30, "batch_size": 4, "lr": 0.001},
}


@pytest.fixture(autouse=True)
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_estimate, "PART_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)


def project_of(**changes: dict[str, Any]) -> Project:
    return Project(parse(params(**changes), "params"))


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "less"), [(False, 0.03), (True, 0.11)])
def test_training_step_is_three_or_four_passes(checkpointing: bool, less: float) -> None:
    """Compare with torch's count of a real backward pass, which omits the image's gradient."""
    spec = spec_of(channels=32, gradient_checkpointing=checkpointing)
    network = UNet(spec).to("meta")
    x, t = torch.zeros(1, 1, 8, 8, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x, t, t).sum().backward()
    assert counter.get_total_flops() == pytest.approx(passes(spec, "simple") * forward_flops(spec), rel=less)


def test_cost_is_the_sum_of_its_parts() -> None:
    changes = {
        "train": {"ema_profiles": {"sigma_rel": [0.05, 0.1], "every": 5}, "p_uncond": 0.1},
        "sweep": {"steps": [2, 3], "eta": [0.0, 1.0], "guidance": [0.0, 1.5]},
        "evaluate": {"extra_extractors": ["inception-v3-compat"]},
    }
    project = project_of(**changes)
    cost, plan = next(check_cost(project)).values, project.plan
    assert cost is not None
    assert plan is not None
    parameters = count_parameters(plan.network)
    assert cost["evaluation_flops"] == model(plan.network).flops
    assert cost["step_flops"] == 3 * 8 * cost["evaluation_flops"]
    assert cost["training_flops"] == 12 * cost["step_flops"]
    assert cost["evaluations"] == 20 * 2 * (2 + 3) * (1 + 2)  # images, etas, steps, without and with guidance
    assert cost["sweep_flops"] == cost["evaluations"] * cost["evaluation_flops"]
    assert cost["scored"] == 8 * 20 + 1797
    assert cost["sizes"] == {
        "data": 1797 * 64,
        "state": (STATE_BYTES + 2 * 4) * parameters,
        "model": MODEL_BYTES * parameters,
        "ema_profiles": 3 * 2 * 4 * parameters,  # after 5, 10 and 12 steps
        "samples": 8 * 20 * 64,
        "features": 1797 * 4 * (1280 + 2048),
    }


def test_a_call_of_the_base_of_a_cascade_counts_by_its_share_of_the_flops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"file": "base.safetensors", "sampling": {"steps": 7}}
    sections = {"model": {"low_res": 4}, "sample": {"base": base}, "sweep": {"steps": [2, 3], "eta": [0.0]}}
    alone = next(check_cost(project_of(**sections))).values
    small_model(
        Path("base.safetensors"), image_size=4, attention_resolutions=(), num_classes=0, null_class=False
    )
    both = next(check_cost(project_of(**sections))).values
    assert alone is not None
    assert both is not None
    assert alone["evaluations"] == 20 * (2 + 3)
    flops = forward_flops(read_artefact(Path("base.safetensors")).network)
    found = both["sweep_flops"] - alone["sweep_flops"]
    assert found == pytest.approx(20 * 2 * 7 * flops, rel=0.01)


def taking(image: float, fixed: float, calls: list[tuple[int, int]]) -> Any:
    """Return work with fixed seconds per image and per call."""

    def work(images: int, count: int) -> list[float]:
        calls.append((images, count))
        return [fixed + images * image] * count

    return work


def test_quick_work_is_timed_with_all_images() -> None:
    calls: list[tuple[int, int]] = []
    found = time_work(taking(0.001, 0.0, calls), 250, seconds=10)
    assert found.median == pytest.approx(0.001)
    assert calls == [(1, 1), (1, 1), (4, 1), (16, 1), (64, 1), (250, 1), (250, 5)]


@given(st.floats(1e-4, 100), st.floats(0, 10), st.integers(1, 1000), st.floats(1, 30))
def test_timing_stays_within_its_limit(image: float, fixed: float, most: int, seconds: float) -> None:
    calls: list[tuple[int, int]] = []
    time_work(taking(image, fixed, calls), most, seconds)
    spent = sum(count * (fixed + images * image) for images, count in calls)
    assert all(1 <= images <= most for images, _ in calls)
    assert spent <= max(seconds, 2 * (fixed + image)) + fixed + calls[-1][0] * image + 1e-6


def test_years_on_this_machine_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_estimate, "matmul_speed", lambda precision: 1e7)
    (found,) = (one for one in check_cost(project_of(train={"steps": 10**8})) if one.level == "warning")
    assert re.search(r"about [\d.]+ years here at the speed of a matrix product, 10 M FLOP/s", found.message)
    assert not [one for one in check_cost(project_of(train={"steps": 10**5})) if one.level == "warning"]


def test_duration_has_a_suitable_unit() -> None:
    durations = {0.035: "35 ms", 1.23: "1.2 s", 42: "42 s", 126: "2.1 min", 28_800: "8.0 h", 6e5: "6.9 days"}
    durations |= {9.5e7: "3.0 years"}
    assert {seconds: format_duration(seconds) for seconds in durations} == durations


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurements by fixed seconds an image; the least are half of them, the most twice."""
    for name, each in {"time_steps": 0.5, "time_sampling": 1.0, "time_extractor": 0.25}.items():
        found = TimeRange(each, each / 2, 2 * each)
        monkeypatch.setattr(cost_estimate, name, lambda *given, found=found: found)


def test_hours_are_seconds_times_counts(timed: None) -> None:
    project = project_of(sweep={"sampler": ["ddim", "dpm-solver++"]})
    found = {part["part"]: part["hours"] for one in check_time(project, print) if (part := one.values)}
    training = {"median": 48 / 3600, "least": 24 / 3600, "most": 96 / 3600}
    assert found["training"] == pytest.approx(training)
    sweep = 20 * 3 * (2 + 3)  # images, DDIM at two η and DPM-Solver++, steps
    parts = {"training": 48, "sweep": sweep, "scoring": (6 * 20 + 1797) / 4}
    seconds = {name: 3600 * hours["median"] for name, hours in found.items()}
    assert seconds == pytest.approx({**parts, "all": sum(parts.values())})


@pytest.mark.parametrize(("seconds", "what"), [(0.25, "all parts"), (None, "all other parts")])
def test_estimate_contains_the_classifiers_training_or_names_it_as_missing(timed, monkeypatch, seconds, what):
    def time_steps(project: Project, plan: TrainPlan, *more: Any) -> TimeRange:
        if isinstance(plan, ClassifierPlan) and seconds is None:
            raise UsageError("it needs more memory")
        return TimeRange(*[seconds if isinstance(plan, ClassifierPlan) and seconds else 1.0] * 3)

    monkeypatch.setattr(cost_estimate, "time_steps", time_steps)
    found = list(check_time(project_of(classifier=CLASSIFIER), print))
    hours = {one.values["part"]: one.values["hours"]["median"] for one in found if one.values}
    assert hours.get("classifier") == (None if seconds is None else pytest.approx(30 * 4 * seconds / 3600))
    assert hours.pop("all") == pytest.approx(sum(hours.values()))
    assert found[-1].message.startswith(f"{what}: ")
    why = "the classifier's training could not be measured: it needs more memory"
    assert (why in [one.message for one in found]) == (seconds is None)


@pytest.mark.parametrize(("others", "upper"), [(0.05, False), (0.8, True)])
def test_estimate_on_a_busy_machine_is_called_an_upper_bound(timed, monkeypatch, others, upper) -> None:
    """Of four processors this process uses all of one, and others a share of all four."""
    monkeypatch.setattr(cost_estimate.psutil, "cpu_percent", lambda: 25 + 100 * others)
    monkeypatch.setattr(cost_estimate.psutil.Process, "cpu_percent", lambda process: 100.0)
    monkeypatch.setattr(cost_estimate.psutil, "cpu_count", lambda: 4)
    found = [one.message for one in check_time(project_of(), print) if one.level == "warning"]
    assert any(f"{others:.0%} of the processors: the times are upper bounds" in one for one in found) == upper


@pytest.mark.slow
def test_command_measures_and_prints_json(project: Path, invoke: Invoke) -> None:
    sampling = {"sample": {"spacing": "ddim-uniform"}, "sweep": {"steps": [5], "eta": [0.0]}}
    write_params(project, classifier=CLASSIFIER, process={"timesteps": 50}, **sampling)
    done = invoke("check", "--measure", "--json")
    assert done.code == 0
    found = [Finding(**finding) for finding in json.loads(done.out)]
    parts = {one.values["part"]: one.values["hours"] for one in found if one.values and "part" in one.values}
    assert parts.keys() == {"training", "classifier", "sweep", "scoring", "all"}
    assert all(0 < hours["least"] <= hours["median"] <= hours["most"] for hours in parts.values())
    assert not (project / "runs").exists()
