"""`diffctl verdict` as a judge of real trainings on digits: equal settings, and known harms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.actions import search_trial
from cli.actions.verdict_trials import Judge, VerdictTrials
from cli.commands.models import SearchTrial
from cli.stages import training
from diffusion.choice.paired_test import PairedTest
from diffusion.layout import VERDICT_RUNS
from diffusion.search.search_config import applied
from diffusion.search.search_dir import About, Trial, TrialResult, open_about, read_result, trial_dir
from diffusion.search.trial_runner import TrialRunner
from diffusion.verdict.arms import APART, Arm
from tests.conftest import params
from tests.helpers.prepared import copy_reference

RATE, STEPS, PAIRS = 0.01, 40, (3, 6)
SETTINGS = params(
    model={"channels": 8, "channel_mult": [1], "attention_resolutions": []},
    process={"variance": "small", "loss": "simple"},
    train={"steps": STEPS, "batch_size": 16, "lr": RATE, "ema_decay": 0.95, "precision": "fp32"}
    | {"val_every": None, "log_every": STEPS, "save_every": STEPS},
    sample={"num_images": 100, "batch_size": 100},
    sweep={"steps": [5], "eta": [0.0]},
    evaluate={"confidence_intervals": False},  # so that no training is scored twice
)
HARMS = ({"train.lr": 30 * RATE}, {"train.steps": round(0.6 * STEPS)})

Decide = Callable[[int, dict[str, Any], int], str]


@pytest.fixture
def decide(project: Path, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Judge a change of the settings with pairs from a seed on; trainings are in this process."""
    copy_reference(project)
    for name, nothing in (
        ("start_sender", lambda folder: None),
        ("close_sender", lambda sender, seconds: None),
    ):
        monkeypatch.setattr(training, name, nothing)  # MLflow has no part in it

    def run(folder: Path, trial: Trial) -> TrialResult:
        place = trial_dir(folder, trial.number)
        search_trial.run_trial(SearchTrial(folder=place))
        result = read_result(place)
        assert result is not None
        return result

    def judge(seed: int, change: dict[str, Any], apart: int = 0) -> str:
        folder = VERDICT_RUNS / f"{seed:016d}"
        open_about(folder, About(key=str(seed), data_digest="", settings={}, search={}))
        values = applied(SETTINGS, {"train.seed": seed, "sample.seed": seed}, "")
        arms = Arm("control", values), Arm("change", applied(values, change, ""), apart)
        trials = VerdictTrials(folder, arms, arms[0].cell(None), SETTINGS["sample"]["num_images"])
        runner = TrialRunner(lambda trial: run(folder, trial))
        (outcome,) = Judge(trials, PairedTest(*PAIRS), "fd", None, runner).decide()
        print(seed, change, outcome.sentence())
        return outcome.kind

    return judge


@pytest.mark.long
def test_at_most_three_of_twenty_equal_settings_are_decided(decide: Decide) -> None:
    found = [decide(1000 * number, {}, APART) for number in range(1, 21)]
    assert "failed" not in found
    assert sum(kind != "no evidence" for kind in found) <= 3


@pytest.mark.long
def test_at_least_nine_of_ten_harms_are_found(decide: Decide) -> None:
    found = [decide(1000 * number, HARMS[number % len(HARMS)], 0) for number in range(1, 11)]
    assert found.count("worse") >= 9
