"""The trainings of a verdict: run pair by pair, resumed, and scored with enough images."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import typer

from diffusion.check.cost_estimate import format_duration
from diffusion.choice.paired_test import PairedTest
from diffusion.protocol.scores_document import CellScores, read_scores
from diffusion.search import search_dir
from diffusion.search.search_dir import Trial, TrialResult, trial_dir
from diffusion.search.trial_runner import TrialRunner
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.section import Section
from diffusion.train.validation_loss import LOSS
from diffusion.verdict.arms import Arm, Metric
from diffusion.verdict.outcome import Pair, TrainingOutcome, needed_images, scoring_noise

PROGRESS = "progress.json"
MAX_FACTOR = 4  # by which the number of images is raised at most


class Progress(Section):
    """What is fixed at the first look: the number of images, and the estimated seconds of a training.

    The latter are None while trainings that ran in full give a better estimate.
    """

    images: int
    seconds: float | None = None


class Job(NamedTuple):
    """The training of an arm in a pair."""

    pair: int
    arm: int


class VerdictTrials:
    """The trainings of the control and its changes in the folder of a verdict.

    `cell` is the name of the cell that is scored, by default each arm's first one with the most steps.
    """

    def __init__(
        self, folder: Path, arms: Sequence[Arm], cell: str | None, images: int, metric: Metric
    ) -> None:
        self.folder, self.arms, self.metric = folder, arms, metric
        self.cells = [arm.cell(cell) for arm in arms]
        self._images = images
        self._progress: Progress | None = None
        self._known: dict[tuple[Job, int], tuple[TrialResult, CellScores | None]] = {}
        with suppress(FileNotFoundError):
            self._progress = read_checksummed_json(folder / PROGRESS, Progress)

    @property
    def images(self) -> int:
        """The number of scored images."""
        return self._progress.images if self._progress else self._images

    @property
    def is_fixed(self) -> bool:
        """Whether the number of images is final."""
        return self._progress is not None

    def seed(self, job: Job) -> int:
        """Return the seed of a training."""
        return self.arms[0].config.train.seed + job.pair + self.arms[job.arm].seeds

    def place(self, job: Job) -> Path:
        """Return the folder of a training."""
        return trial_dir(self.folder, self._number(job))

    def values(self, job: Job) -> dict[str, float]:
        """Return a finished training's scores by name, the one that decides first."""
        if self.metric == "loss":
            result = self.result(job)
            assert result is not None, "the training has run"
            assert result.value is not None, "it did not fail"
            return {LOSS: result.value}
        scores = self._scores(job)
        names = scores.spec.distance, scores.spec.kernel_distance
        return {name: scores.scores[name] for name in (names if self.metric == "fd" else names[::-1])}

    def _scores(self, job: Job) -> CellScores:
        found = self._read(job)
        assert found is not None, "the training has run"
        assert found[1] is not None, "it did not fail"
        return found[1]

    def result(self, job: Job) -> TrialResult | None:
        """Return the result of a training; None if it has none, or scores of fewer images."""
        found = self._read(job)
        return None if found is None else found[0]

    def _read(self, job: Job) -> tuple[TrialResult, CellScores | None] | None:
        """Return the result of a training and its scores, None for those of a failed one."""
        key = job, self.images
        if key not in self._known and (result := search_dir.read_result(self.place(job))):
            scores = None
            if result.state == "done" and self.metric != "loss":
                scores = read_scores(self.place(job) / search_dir.SCORES).cells[self.cells[job.arm].name]
            if scores is None or scores.num_images == self.images:
                self._known[key] = result, scores
        return self._known.get(key)

    def run(self, jobs: Sequence[Job], runner: TrialRunner) -> bool:
        """Run the trainings that have no result, in order; return whether there were any.

        Interrupted on a signal, after a save.
        """
        waiting, running = [job for job in jobs if self.result(job) is None], set[int]()
        has_run = False
        while waiting or running:
            while waiting and len(running) < runner.room():
                number = self._begin(waiting.pop(0))
                running.add(number)
                runner.start(Trial(number, {}))
            for number, _ in runner.ended():
                running.discard(number)
                has_run = True
        return has_run

    def seconds(self, jobs: Sequence[Job]) -> float:
        """Return what these trainings took with all interruptions, on this machine or another one."""
        return sum(search_dir.read_elapsed(self.place(job)).seconds for job in jobs)

    def mean_seconds(self, jobs: Sequence[Job], measure: Callable[[], float]) -> float:
        """Return the mean duration of those of these trainings that ran in full.

        Without one it is what `measure` returned at first: a resumed verdict ends at the same pair.
        """
        done = [job for job in jobs if (end := self.result(job)) is not None and end.state == "done"]
        found = [search_dir.read_elapsed(self.place(job)) for job in done]
        if seconds := [one.seconds for one in found if one.is_full]:
            return fmean(seconds)
        known = self._progress.seconds if self._progress else None
        if known is None:
            known = measure()
            self._store(Progress(images=self.images, seconds=known))
        return known

    def fix_images(self, jobs: Sequence[Job]) -> None:
        """Raise the number of images until scoring's noise is below a third of that between seeds.

        The images of a validation loss are the same in all trainings, so they stay.
        """
        arms = {job.arm for job in jobs} - {0} if self.metric != "loss" else set()
        wanted = [self._needed(arm, jobs) for arm in arms]
        images = max(wanted, default=self.images)
        if images != self.images:
            typer.echo(f"scoring is noisy next to seeds: {images:,} images from now on", err=True)
        self._store(Progress(images=images))

    def _store(self, progress: Progress) -> None:
        write_json(self.folder / PROGRESS, add_checksum(progress.model_dump()))
        self._progress = progress

    def _needed(self, arm: int, jobs: Sequence[Job]) -> int:
        metric = next(iter(self.values(jobs[0])))
        pairs = [(self._scores(job), self._scores(Job(job.pair, 0))) for job in jobs if job.arm == arm]
        noise = [scoring_noise(*pair, metric) for pair in pairs]
        known = [one for one in noise if one is not None]
        if len(known) < len(pairs) or len(pairs) < 2:
            return self.images
        deviation = float(np.std([one.scores[metric] - other.scores[metric] for one, other in pairs], ddof=1))
        return needed_images(known, deviation, self.images, MAX_FACTOR * self.images)

    def _number(self, job: Job) -> int:
        return job.pair * len(self.arms) + job.arm

    def _begin(self, job: Job) -> int:
        folder = self.place(job)
        (folder / search_dir.RESULT).unlink(missing_ok=True)  # of fewer images
        control, arm = self.arms[0].config, self.arms[job.arm]
        seeds = control.train.seed + job.pair, control.sample.seed + job.pair
        search_dir.write_trial_params(folder, arm.pair_values(seeds, self.cells[job.arm], self.images), {})
        typer.echo(f"pair {job.pair + 1}: {arm.name}, seed {self.seed(job)}", err=True)
        return self._number(job)


class Judge:
    """Decides on all changes, pair by pair.

    `measure` returns the estimated seconds of a training, for a budget before one has run in full.
    """

    def __init__(
        self,
        trials: VerdictTrials,
        test: PairedTest,
        budget: float | None,
        runner: TrialRunner,
        measure: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._trials, self._test, self._budget, self._runner = trials, test, budget, runner
        self._measure = measure
        self.seconds = 0.0
        self.is_over_budget = False

    def decide(self) -> list[TrainingOutcome]:
        """Run pairs until every change is decided, or pairs or budget end; a decided change ends early.

        DiffctlError if a training of the control fails.
        """
        trials, test = self._trials, self._test
        control, *changes = trials.arms
        outcomes = [
            TrainingOutcome(arm.name, tuple(arm.differences(control)), (), test.error, test=test)
            for arm in changes
        ]
        done: list[Job] = []
        for pair in range(test.last):
            active = [number for number, one in enumerate(outcomes, start=1) if one.is_open]
            if not active or self._ends_budget(pair, done, len(active) + 1):
                break
            pairs = range(pair, pair + self._ahead(pair, done, len(active) + 1))
            has_run = trials.run([job for one in pairs for job in _jobs(one, active)], self._runner)
            done += _jobs(pair, active)
            if pair + 1 == test.first and not trials.is_fixed:
                self._fix_images(done, active)
            for arm in active:
                outcomes[arm - 1] = self._with_pairs(outcomes[arm - 1], arm, pair)
            self.seconds = trials.seconds(done)
            self._report(pair, outcomes, active)
            left = test.last - pair - 1
            if has_run and left and any(one.is_open for one in outcomes):
                each = self.seconds / (pair + 1)
                typer.echo(f"up to {left} more pairs, about {format_duration(left * each)}", err=True)
        return outcomes

    def _fix_images(self, done: Sequence[Job], active: Sequence[int]) -> None:
        trials = self._trials
        failed = {job for job in done if (end := trials.result(job)) is None or end.state != "done"}
        arms = {0, *active} - {job.arm for job in failed}
        jobs = [job for job in done if job.arm in arms]
        if 0 in arms and len(arms) > 1:
            trials.fix_images(jobs)
            trials.run(jobs, self._runner)

    def _with_pairs(self, outcome: TrainingOutcome, arm: int, pair: int) -> TrainingOutcome:
        """Return the outcome with the scores of all pairs so far, which may be of more images now.

        With a failed training it has no pairs, since those before may be scored with fewer images.
        """
        trials, numbers = self._trials, range(pair + 1)
        for job in (Job(number, one) for number in numbers for one in (0, arm)):
            end = trials.result(job)
            if end is not None and end.state != "done":
                found = f"the training of {trials.arms[job.arm].name} with seed {trials.seed(job)} failed"
                reason = f"{found} because {end.reason or end.state}"
                if job.arm == 0:
                    raise DiffctlError(f"{reason}: correct that, and remove {trials.place(job)}")
                return replace(outcome, pairs=(), metrics=self._metrics(), failure=reason)
        pairs = tuple(
            Pair(trials.seed(Job(number, 0)), *(trials.values(Job(number, one)) for one in (0, arm)))
            for number in numbers
        )
        return replace(outcome, pairs=pairs, metrics=self._metrics())

    def _metrics(self) -> tuple[str, ...]:
        """Return the names of the score that decides and of those that it is compared with."""
        return tuple(self._trials.values(Job(0, 0)))

    def _ahead(self, pair: int, done: Sequence[Job], arms: int) -> int:
        """Return how many pairs are started at once, where several trainings can run.

        They may turn out to be unnecessary, which wastes work and changes no verdict.
        """
        fitting = max(1, self._runner.room() // arms)
        if pair < self._test.first:
            return min(fitting, self._test.first - pair)  # later ones may need more images
        fitting = min(fitting, self._test.last - pair)
        return next((n for n in range(fitting, 1, -1) if not self._exceeds_budget(n * arms, done)), 1)

    def _ends_budget(self, pair: int, done: Sequence[Job], arms: int) -> bool:
        """Return whether the next pair would end after the budget."""
        self.is_over_budget = pair >= self._test.first and self._exceeds_budget(arms, done)
        return self.is_over_budget

    def _exceeds_budget(self, count: int, done: Sequence[Job]) -> bool:
        """Return whether so many trainings more exceed the budget.

        Each is estimated by the mean of those that ran in full: a reused one takes almost no time.
        """
        if self._budget is None:
            return False
        each = self._trials.mean_seconds(done, self._measure)
        return self.seconds + count * each > self._budget

    def _report(self, pair: int, outcomes: Sequence[TrainingOutcome], active: Sequence[int]) -> None:
        """Print the scores of a pair, and what all show so far."""
        for arm in active:
            one = outcomes[arm - 1]
            if one.failure:
                typer.echo(f"{one.name}: {one.sentence()}", err=True)
                continue
            last, metric = one.pairs[-1], one.metrics[0]
            sides = f"control {last.control[metric]:.4g}, {one.name} {last.change[metric]:.4g}"
            so_far = f"; so far {one.main.describe()}" if one.main.interval else ""
            place = f"pair {pair + 1} of at most {self._test.last}, seed {last.seed}"
            typer.echo(f"{place}: {sides}{so_far}", err=True)


def _jobs(pair: int, active: Sequence[int]) -> list[Job]:
    """Return the trainings of a pair in their order, in which the arms alternate."""
    jobs = [Job(pair, arm) for arm in (0, *active)]
    return jobs if pair % 2 == 0 else jobs[::-1]
