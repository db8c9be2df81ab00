"""`diffctl verdict` as a judge of real trainings on digits: equal settings, and known harms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.actions.trials import trial_process
from cli.actions.trials.verdict_judge import Judge
from cli.actions.trials.verdict_trials import VerdictTrials
from cli.stages import training
from cli.stages.observers import TrackedTraining
from cli.trials.trial_commands import SearchTrial
from diffusion.choice.paired_test import PairedTest
from diffusion.layout import VERDICT_RUNS
from diffusion.system.params import with_fields
from diffusion.trials.trial_runs import (
    About,
    Trial,
    TrialResult,
    TrialRunner,
    open_about,
    read_result,
    trial_dir,
)
from diffusion.verdict.arms import APART, Arm
from tests.conftest import params
from tests.helpers.prepared import copy_reference

RATE, STEPS = 0.004, 20  # the score still falls quickly with further steps
SETTINGS = params(
    model={"channels": 8, "channel_mult": [1], "attention_resolutions": []},
    process={"variance": "small", "loss": "simple"},
    train={"steps": STEPS, "batch_size": 16, "lr": RATE, "ema_decay": 0.95, "precision": "fp32"}
    | {"val_every": None, "log_every": STEPS, "save_every": STEPS},
    sample={"num_images": 60, "batch_size": 60},
    sweep={"steps": [5], "eta": [0.0]},
    evaluate={"confidence_intervals": False},  # so that no training is scored twice
)
HARMS = ({"train.lr": 30 * RATE}, {"train.steps": round(0.6 * STEPS)})

Decide = Callable[[Arm, Arm, tuple[int, int]], str]


@pytest.fixture
def decide(project: Path, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Judge a change of the settings with pairs from a seed on; trainings are in this process."""
    copy_reference(project)
    for place, name in ((training, "start_sender"), (training, "close_sender"), (TrackedTraining, "preview")):
        monkeypatch.setattr(place, name, lambda *ignored: None)  # they observe, and take most of the time
    monkeypatch.setattr(training, "training_name", lambda config: "digits")

    def run(folder: Path, trial: Trial) -> TrialResult:
        place = trial_dir(folder, trial.number)
        trial_process.run_trial(SearchTrial(folder=place, local=False))
        result = read_result(place)
        assert result is not None
        return result

    def judge(control: Arm, change: Arm, pairs: tuple[int, int]) -> str:
        folder = VERDICT_RUNS / f"{control.config.train.seed:016d}"
        about = About(key=folder.name, settings={}, search={"metric": "fd"})
        open_about(folder, about)
        trials = VerdictTrials(folder, [control, change], None, 60, "fd")
        runner = TrialRunner(lambda trial: run(folder, trial))
        (outcome,) = Judge(trials, PairedTest(*pairs), None, runner).decide()
        print(control.config.train.seed, change.name, outcome.sentence())
        return outcome.kind

    return judge


def settings(number: int, change: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006 (it is only read)
    """Return the settings of a verdict's arm; no two verdicts share a seed."""
    return with_fields(SETTINGS, {"train.seed": 1000 * number, "sample.seed": 1000 * number, **change})


@pytest.mark.long
def test_at_most_three_of_twenty_equal_settings_are_decided(decide: Decide) -> None:
    found = []
    for number in range(1, 21):
        arms = Arm("control", settings(number)), Arm("other seeds", settings(number), APART)
        found.append(decide(*arms, (3, 4)))
    assert "failed" not in found
    assert sum(kind != "no evidence" for kind in found) <= 3


@pytest.mark.long
def test_at_least_nine_of_ten_harms_are_found(decide: Decide) -> None:
    found = []
    for number in range(1, 11):
        harm = HARMS[number % len(HARMS)]
        found.append(decide(Arm("control", settings(number)), Arm(str(harm), settings(number, harm)), (3, 8)))
    assert found.count("worse") >= 9
