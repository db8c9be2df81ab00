"""The order of a verdict's trainings, and its end: stopped anywhere, it ends with the same verdict."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from cli.actions.trials import verdict
from cli.actions.trials.verdict_judge import Judge
from cli.actions.trials.verdict_trials import PROGRESS, VerdictTrials
from diffusion.choice.paired_test import PairedTest
from diffusion.layout import VERDICT_RUNS
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.errors import DiffctlError
from diffusion.trials.trial_runs import (
    SCORES,
    Elapsed,
    Trial,
    TrialResult,
    TrialRunner,
    trial_dir,
    write_elapsed,
    write_result,
)
from diffusion.verdict.arms import Arm
from diffusion.verdict.outcome import TrainingOutcome
from tests.conftest import params
from tests.helpers.invoke import Invoke
from tests.helpers.prepared import copy_data
from tests.helpers.scores_document import chance, document, with_errors

FD, KD = "fd_effnet_lite0_64", "kd_effnet_lite0_64"
BETTER, WORSE, EQUAL = -300.0, 300.0, 0.0


class Stopped(Exception):
    """A kill before or after a training."""


class Workers(TrialRunner):
    """Several workers, of which the last one to start ends first."""

    def __init__(self, run: Callable[[Trial], TrialResult], count: int) -> None:
        super().__init__(run)
        self.count = count

    def room(self) -> int:
        return self.count


class Machine:
    """A machine on which a training takes 10 s and scores as chosen by (arm, seed).

    `noise` is the standard error of a score with 20 images. It stops after so many trainings.
    """

    def __init__(
        self, folder: Path, effects: tuple[float, ...], noise: float = 0.0, spread: float = 20.0
    ) -> None:
        self.folder, self.effects, self.noise, self.spread = folder, effects, noise, spread
        self.trained: list[tuple[int, int, int]] = []  # (arm, seed, images)
        self.stops_after = 10_000
        self.failures: dict[tuple[int, int], str] = {}
        self.reused: set[tuple[int, int]] = set()  # trainings of other commands, which take no time
        self.measured = 0.0  # the estimate of a training

    def run(self, trial: Trial) -> TrialResult:
        folder, arm = trial_dir(self.folder, trial.number), trial.number % (len(self.effects) + 1)
        values = yaml.safe_load((folder / "params.yaml").read_text())
        seed, images = values["train"]["seed"], values["sample"]["num_images"]
        if len(self.trained) >= self.stops_after:
            raise Stopped
        self.trained.append((arm, seed, images))
        if reason := self.failures.get((arm, seed)):
            result = TrialResult("failed", reason=reason)
        else:
            drawn = np.random.default_rng([arm, seed]).normal()
            value = 1000 + (0.0, *self.effects)[arm] + self.spread * drawn
            scores = document({(3, 0.0): value / 1000}, num_images=images, seed=values["sample"]["seed"])
            if self.noise:
                error = self.noise * (20 / images) ** 0.5
                with_errors(scores.cells["steps3-eta0"], FD, chance(arm, error))
                with_errors(scores.cells["steps3-eta0"], KD, chance(arm, error / 1000))
            write_scores_document(folder / SCORES, scores)
            result = TrialResult("done", value)
        times = [one[:2] for one in self.trained].count((arm, seed))  # with each number of images
        reused = (arm, seed) in self.reused
        write_elapsed(folder, Elapsed(0.0 if reused else 10.0 * times, is_full=not reused))
        write_result(folder, result)
        return result

    def judge(
        self, budget: float | None = None, pairs: tuple[int, int] = (3, 12), workers: int = 1
    ) -> tuple[Judge, list[TrainingOutcome]]:
        """Return a judge in a new process, and its outcomes."""
        arms = [
            Arm(f"arm{number}", params(train={"steps": 12 + number}))
            for number in range(len(self.effects) + 1)
        ]
        trials = VerdictTrials(self.folder, arms, None, 20, "fd")
        test = PairedTest(*pairs, 0.05 / len(self.effects))
        judge = Judge(trials, test, budget, Workers(self.run, workers), lambda: self.measured)
        return judge, judge.decide()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    def make(*effects: float, name: str = "verdict", **options: float) -> Machine:
        return Machine(tmp_path / name, effects, **options)

    return make


def as_json(outcomes: list[TrainingOutcome]) -> str:
    return json.dumps([one.as_json() for one in outcomes])


def test_arms_alternate_and_a_clear_change_ends_at_the_first_look(machine: Callable[..., Machine]) -> None:
    one = machine(BETTER)
    judge, (outcome,) = one.judge()
    assert one.trained == [(0, 0, 20), (1, 0, 20), (1, 1, 20), (0, 1, 20), (0, 2, 20), (1, 2, 20)]
    assert outcome.kind == "better"
    assert judge.seconds == 60
    assert outcome.main.interval is not None
    assert outcome.main.interval[0] < BETTER < outcome.main.interval[1]


def test_decided_changes_end_early_and_share_the_control(machine: Callable[..., Machine]) -> None:
    one = machine(EQUAL, WORSE)
    _, (equal, worse) = one.judge(pairs=(3, 5))
    assert (equal.kind, worse.kind) == ("no evidence", "worse")
    assert [len(outcome.pairs) for outcome in (equal, worse)] == [5, 3]
    assert sorted(arm for arm, _, _ in one.trained) == [0] * 5 + [1] * 5 + [2] * 3


def test_noisy_scores_get_more_images_once_before_the_first_look(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    one = machine(BETTER, noise=25.0)
    judge, (outcome,) = one.judge()
    _, printed = capsys.readouterr().err.split("80 images from now on")
    assert re.findall("pair (.) of at most", printed) == ["1", "2", "3"]
    assert [images for _, _, images in one.trained] == [20] * 6 + [80] * 6
    assert judge.seconds == 120  # those of fewer images count
    assert outcome.pairs[0].change[FD] == pytest.approx(
        1000 + BETTER + 20 * np.random.default_rng([1, 0]).normal()
    )
    assert one.judge()[1] == [outcome]
    assert len(one.trained) == 12


def test_failure_in_the_pair_whose_images_are_raised_ends_its_change(machine: Callable[..., Machine]) -> None:
    one = machine(BETTER, EQUAL, noise=25.0)
    one.failures = {(1, 2): "the loss is NaN"}
    _, (failed, other) = one.judge(pairs=(3, 4))
    assert failed.sentence() == "not judged: the training of arm1 with seed 2 failed because the loss is NaN"
    assert (1, 0, 80) not in one.trained
    assert [images for arm, _, images in one.trained if arm == 2] == [20] * 3 + [80] * 4
    assert as_json(one.judge(pairs=(3, 4))[1]) == as_json([failed, other])


def test_budget_ends_after_the_first_look_and_can_be_raised(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    one = machine(EQUAL)
    judge, (outcome,) = one.judge(budget=1.0)
    assert (len(outcome.pairs), judge.is_over_budget) == (3, True)
    assert "the budget ends before pair 4: a larger --budget resumes" in capsys.readouterr().err
    judge, (outcome,) = one.judge(budget=100.0)
    assert (len(outcome.pairs), judge.seconds, judge.is_over_budget) == (5, 100, True)
    assert one.judge(budget=100.0)[1] == [outcome]
    assert len(one.trained) == 10


def test_reused_trainings_do_not_count_in_the_estimate_of_a_pair(machine: Callable[..., Machine]) -> None:
    one = machine(EQUAL)
    one.reused = {(0, seed) for seed in range(12)}
    judge, (outcome,) = one.judge(budget=45.0)
    assert (len(outcome.pairs), judge.seconds, judge.is_over_budget) == (3, 30, True)


def test_without_a_full_training_the_measurement_is_the_estimate(machine: Callable[..., Machine]) -> None:
    one = machine(EQUAL)
    one.reused, one.measured = {(arm, seed) for arm in range(2) for seed in range(3)}, 30.0
    judge, (outcome,) = one.judge(budget=50.0)
    assert (len(outcome.pairs), judge.seconds, judge.is_over_budget) == (3, 0, True)
    one.measured = 1.0  # the first one stays
    assert one.judge(budget=50.0)[1] == [outcome]
    judge, (outcome,) = one.judge(budget=60.0)
    assert (len(outcome.pairs), judge.seconds) == (6, 60)


def refuse_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error where the trainings of a verdict would start."""

    def start(*ignored: object) -> None:
        raise DiffctlError("the trainings start")

    monkeypatch.setattr(verdict, "preflight", lambda *ignored: None)
    monkeypatch.setattr(verdict, "trial_runner", start)


def test_verdicts_with_other_pairs_are_named(
    project: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_data(project)
    refuse_to_start(monkeypatch)
    changes = ["train.batch_size=4", "train.log_every=3"]
    line = ("verdict", *changes, "--metric", "loss", "--pairs")
    invoke("verdict", *reversed(changes), *line[3:], "3..4")
    (folder,) = VERDICT_RUNS.glob("*")
    assert "judged with" not in invoke(*line, "3..6").err  # none had its first look
    (folder / PROGRESS).touch()
    assert "--pairs 3..4 too: both verdicts together err in more than 5%" in invoke(*line, "3..6").err
    assert "judged with" not in invoke(*line, "3..4").err
    assert "judged with" not in invoke("verdict", "train.batch_size=5", *line[3:], "3..6").err


def test_budget_does_not_refuse_a_verdict_that_has_begun(
    project: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_data(project)
    refuse_to_start(monkeypatch)
    monkeypatch.setattr(verdict, "_measure", lambda *ignored: 100.0)
    line = ("verdict", "train.batch_size=4", "--metric", "loss", "--budget", "1s")
    assert "--budget: 3 pairs need about" in invoke(*line).err
    (folder,) = VERDICT_RUNS.glob("*")
    trial_dir(folder, 0).mkdir(parents=True)
    resumed = invoke(*line).err
    assert "the first 3 pairs are trained whatever the budget is" in resumed
    assert "the trainings start" in resumed


@pytest.mark.parametrize("budget", [None, 165.0])
@pytest.mark.parametrize("effects", [(EQUAL,), (BETTER,), (EQUAL, WORSE)])
def test_workers_change_no_verdict(
    machine: Callable[..., Machine], effects: tuple[float, ...], budget: float | None
) -> None:
    alone, many = (machine(*effects, noise=25.0, name=name) for name in ("alone", "many"))
    judge, wanted = alone.judge(budget, pairs=(3, 5))
    other, found = many.judge(budget, pairs=(3, 5), workers=7)
    assert as_json(found) == as_json(wanted)
    assert (other.seconds, other.is_over_budget) == (judge.seconds, judge.is_over_budget)
    assert many.trained[0][1] > 0  # of the pairs that are started together the last one ends first


def test_failed_training_of_a_change_ends_it_and_of_the_control_ends_all(
    machine: Callable[..., Machine],
) -> None:
    one = machine(BETTER, EQUAL)
    one.failures = {(1, 1): "the loss is NaN"}
    _, (failed, other) = one.judge(pairs=(3, 4))
    assert failed.sentence() == "not judged: the training of arm1 with seed 1 failed because the loss is NaN"
    assert failed.as_json()["decision"] == "failed"
    assert len(other.pairs) == 4
    assert (1, 2, 20) not in one.trained
    two = machine(EQUAL, name="two")
    two.failures = {(0, 1): "the loss is NaN"}
    with pytest.raises(
        DiffctlError, match=r"arm0 with seed 1 failed because the loss is NaN: .*trials/00002"
    ):
        two.judge()


@pytest.mark.slow
def test_verdict_stopped_anywhere_ends_alike(machine: Callable[..., Machine]) -> None:
    whole = machine(EQUAL, noise=25.0)
    wanted = as_json(whole.judge(pairs=(3, 5), budget=165)[1])
    assert len(whole.trained) == 14  # 3 pairs, those again with more images, and one of two that remain
    for stop in range(len(whole.trained)):
        part = machine(EQUAL, noise=25.0, name=f"stopped{stop}")
        part.stops_after = stop
        with pytest.raises(Stopped):
            part.judge(pairs=(3, 5), budget=165)
        part.stops_after = 10_000
        assert as_json(part.judge(pairs=(3, 5), budget=165)[1]) == wanted
        assert sorted(part.trained) == sorted(whole.trained)  # nothing is lost or repeated
