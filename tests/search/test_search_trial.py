"""The process of a trial: what it computes, stores and leaves to the next one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.actions import search_trial
from cli.commands.models import SearchTrial
from cli.stages import training
from cli.stages.observers import TrackedTraining
from diffusion.layout import TRAIN_RUNS, VERDICT_RUNS
from diffusion.search.search_dir import (
    About,
    TrialResult,
    open_about,
    read_result,
    trial_dir,
    write_trial_params,
)
from tests.conftest import params
from tests.helpers.prepared import copy_data

SHORT = {"steps": 4, "save_every": 4, "log_every": 2, "val_every": 4}

RunTrial = Callable[..., TrialResult | None]


@pytest.fixture
def run_trial(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunTrial:
    """Run the first trial of a verdict by the validation loss in this process, and return its result."""
    copy_data(project)
    for place, name in ((training, "start_sender"), (training, "close_sender"), (TrackedTraining, "preview")):
        monkeypatch.setattr(place, name, lambda *ignored: None)
    monkeypatch.setattr(training, "training_name", lambda config: "digits")

    def run(name: str = "first", val_images: int = 8) -> TrialResult | None:
        verdict = VERDICT_RUNS / name
        open_about(verdict, About(key=name, data_digest="", settings={}, search={"metric": "loss"}))
        folder = trial_dir(verdict, 0)
        write_trial_params(folder, params(train={**SHORT, "val_images": val_images}), {})
        search_trial.run_trial(SearchTrial(folder=folder, local=False))
        return read_result(folder)

    return run


@pytest.mark.slow
def test_validation_loss_of_a_reused_training_is_of_the_own_images(run_trial: RunTrial) -> None:
    first, reused = run_trial("first", val_images=8), run_trial("second", val_images=16)
    assert len(list(TRAIN_RUNS.glob("*/config.json"))) == 1
    shutil.rmtree(TRAIN_RUNS)
    assert run_trial("third", val_images=16) == reused != first
