"""The process of a trial: what it computes, stores and leaves to the next one."""

import math
import re
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from cli.actions.trials import trial_process
from cli.stages import training
from cli.stages.observers import TrackedTraining
from cli.trials.trial_commands import SearchTrial
from diffusion.layout import HELD_OUT, TRAIN_RUNS, VERDICT_RUNS
from diffusion.sample.sampler import NonFiniteError
from diffusion.system.errors import DiffctlError, DiffctlWarning, Interrupted, TemporaryError, UsageError
from diffusion.system.locks import LockBusy
from diffusion.train.checkpoint.state_files import SavedState, read_state, save_state
from diffusion.train.distributed import launch
from diffusion.train.loop import Diverged
from diffusion.train.step_memory import OutOfMemory
from diffusion.train.validation_loss import ValidationLoss
from diffusion.trials.trial_inputs import Inputs, inputs_of_loss
from diffusion.trials.trial_runs import (
    About,
    Elapsed,
    TrialResult,
    open_about,
    read_elapsed,
    read_result,
    trial_dir,
    write_trial_params,
)
from diffusion.verdict.arms import Arm
from flows.ray.trial_runner import STARTED, STARTER
from tests.conftest import params
from tests.helpers.prepared import copy_data, reverse_held_out_images

SHORT = {"steps": 4, "save_every": 4, "log_every": 2, "val_every": 4}

RunTrial = Callable[..., TrialResult | None]


@pytest.fixture
def run_trial(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunTrial:
    """Run the first trial of a verdict, by default by the loss, in this process; return its result."""
    copy_data(project)
    for place, name in ((training, "start_sender"), (training, "close_sender"), (TrackedTraining, "preview")):
        monkeypatch.setattr(place, name, lambda *ignored: None)
    monkeypatch.setattr(training, "training_name", lambda config: "digits")

    def run(
        name: str = "first", val_images: int = 8, inputs: Sequence[Inputs] = (), metric: str = "loss"
    ) -> TrialResult | None:
        verdict = VERDICT_RUNS / name
        open_about(verdict, About(key=name, settings={}, search={"metric": metric}, inputs=list(inputs)))
        folder = trial_dir(verdict, 0)
        write_trial_params(folder, params(train={**SHORT, "val_images": val_images}), {})
        trial_process.run_trial(SearchTrial(folder=folder, local=False))
        return read_result(folder)

    return run


@pytest.mark.slow
def test_validation_loss_of_a_reused_training_is_of_the_own_images(run_trial: RunTrial) -> None:
    first, reused = run_trial("first", val_images=8), run_trial("second", val_images=16)
    assert len(list(TRAIN_RUNS.glob("*/config.json"))) == 1
    full = [read_elapsed(trial_dir(VERDICT_RUNS / name, 0)).is_full for name in ("first", "second")]
    assert full == [True, False]
    shutil.rmtree(TRAIN_RUNS)
    assert run_trial("third", val_images=16) == reused != first


@pytest.mark.slow
def test_training_that_was_continued_from_other_code_is_no_trial(run_trial: RunTrial) -> None:
    """`diffctl run --keep` copies such a state into the folder of the training by the present code."""
    run_trial("first")
    (path,) = TRAIN_RUNS.glob("*/state-*")
    tensors, values = read_state(path)
    older = values.code[0].model_copy(update={"digest": "0" * 16})
    kept = values.model_copy(update={"code": [older, values.code[0].model_copy(update={"step": 2})]})
    save_state(path.parent, SavedState(dict(tensors), kept))
    with pytest.raises(
        DiffctlError, match=r"was continued from other code .*--keep.* set another train\.seed"
    ):
        run_trial("second")
    assert read_result(trial_dir(VERDICT_RUNS / "second", 0)) is None


def raising(error: BaseException) -> Callable[..., TrialResult]:
    """Return a function that raises the error."""

    def fail(*ignored: object) -> TrialResult:
        raise error

    return fail


@pytest.mark.parametrize("error", [UsageError("?"), Diverged("?"), NonFiniteError("?"), OutOfMemory("?")])
def test_failure_that_the_settings_cause_is_the_result(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch, error: DiffctlError
) -> None:
    monkeypatch.setattr(trial_process, "_train_and_score", raising(error))
    assert run_trial() == TrialResult("failed", reason=str(error))


@pytest.mark.parametrize("error", [DiffctlError("the disk is full"), TemporaryError("?"), LockBusy("?")])
def test_other_failure_is_no_result(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch, error: DiffctlError
) -> None:
    monkeypatch.setattr(trial_process, "_train_and_score", raising(error))
    with pytest.raises(type(error), match=re.escape(str(error))):
        run_trial()
    monkeypatch.setattr(trial_process, "_train_and_score", lambda *ignored: TrialResult("done", 1.0))
    assert run_trial() == TrialResult("done", 1.0)


def test_stop_is_reported_by_the_process_that_started_the_trial(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_process, "_train_and_score", raising(Interrupted("stopped", signal.SIGTERM)))
    monkeypatch.setattr(trial_process, "die_with_parent", lambda *ignored: None)
    with pytest.raises(Interrupted):
        run_trial()
    monkeypatch.setenv(STARTER, "1")
    with pytest.raises(typer.Exit) as end:
        run_trial()
    assert end.value.exit_code == 143


def test_failure_with_a_missing_reference_is_no_result(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_process, "_train_and_score", raising(UsageError("?")))
    with pytest.raises(UsageError, match=re.escape("?")):
        run_trial(metric="fd")
    monkeypatch.setattr(trial_process, "check_scoring", lambda config: None)
    assert run_trial(metric="fd") == TrialResult("failed", reason="?")
    shutil.rmtree(HELD_OUT)
    with pytest.raises(UsageError, match=f"no images in {HELD_OUT}"):
        run_trial("another")


def test_seconds_of_interrupted_processes_are_added(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(trial_process, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setenv(STARTED, "-5.0")

    def stopped(trial: trial_process.TrialRun, *ignored: object) -> TrialResult:
        clock[0] += 90
        trial.is_new = True
        raise Interrupted("stopped", signal.SIGINT)

    def resumed(*ignored: object) -> TrialResult:
        clock[0] += 10
        return TrialResult("done", 1.0)

    monkeypatch.setattr(trial_process, "_train_and_score", stopped)
    with pytest.raises(Interrupted):
        run_trial()
    monkeypatch.setattr(trial_process, "_train_and_score", resumed)
    run_trial()
    assert read_elapsed(trial_dir(VERDICT_RUNS / "first", 0)) == Elapsed(105.0, is_full=True)


def done(*ignored: object) -> TrialResult:
    """Return the result of a trial that trains nothing."""
    return TrialResult("done", 1.0)


def test_trial_with_other_images_or_code_than_at_the_start_is_no_result(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_process, "_train_and_score", done)
    inputs = inputs_of_loss(Arm("control", params(train={**SHORT, "val_images": 8})).plan)
    for number, name in enumerate(inputs):
        with pytest.raises(DiffctlError, match=f"^{name} changed since the search or verdict in"):
            run_trial(f"changed{number}", inputs=[{**inputs, name: "other"}])
    assert run_trial("same", inputs=[{**inputs, "torch": "0.1"}, inputs]) == done()
    monkeypatch.setattr(
        trial_process, "_train_and_score", lambda *ignored: reverse_held_out_images() or done()
    )
    with pytest.raises(DiffctlError, match=f"^{HELD_OUT} changed since"):
        run_trial("meanwhile", inputs=[inputs])
    assert read_result(trial_dir(VERDICT_RUNS / "meanwhile", 0)) is None


@pytest.mark.parametrize(
    ("name", "value"), [("MLFLOW_TRACKING_URI", "mlruns"), ("DIFFCTL_STATE_URL", "memory://states")]
)
def test_failure_by_a_wrong_variable_is_no_result(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(trial_process, "_train_and_score", raising(UsageError("?")))
    with pytest.raises(UsageError, match=name):
        run_trial()


def test_failure_by_missing_gpus_is_no_result(run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "process_count", raising(UsageError("there is 1 GPU")))
    monkeypatch.setattr(trial_process, "_train_and_score", raising(UsageError("?")))
    with pytest.raises(UsageError, match="1 GPU"):
        run_trial()


def test_trials_of_one_training_run_one_after_another(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2)

    def score(*ignored: object) -> TrialResult:
        with pytest.raises(threading.BrokenBarrierError):
            meeting.wait(0.5)  # until another trial is here
        return done()

    monkeypatch.setattr(trial_process, "_train_and_score", score)
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(run_trial, ("first", "second"))) == [done(), done()]


@pytest.mark.slow
def test_validation_loss_that_is_not_finite_is_the_failure_of_its_trial(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ValidationLoss, "losses", lambda *ignored: {"loss": math.nan})
    with pytest.warns(DiffctlWarning, match="NaN"):
        assert run_trial() == TrialResult("failed", reason="its validation loss is not finite")
