"""The decision on the changes of a verdict: pairs of trainings until it is clear, or pairs or budget end."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import typer

from cli.actions.trials.verdict_trials import Job, VerdictTrials
from diffusion.check.cost_estimate import format_duration
from diffusion.choice.paired_test import PairedTest
from diffusion.system.errors import DiffctlError
from diffusion.trials.trial_runs import TrialRunner
from diffusion.verdict.outcome import Pair, TrainingOutcome


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
            if not active:
                break
            if self._ends_budget(pair, done, len(active) + 1):
                typer.echo(f"the budget ends before pair {pair + 1}: a larger --budget resumes", err=True)
                break
            pairs = range(pair, pair + self._ahead(pair, done, len(active) + 1))
            has_run = trials.run([job for one in pairs for job in _jobs(one, active)], self._runner)
            done += _jobs(pair, active)
            is_rescored = pair + 1 == test.first and not trials.is_fixed and self._fix_images(done, active)
            for arm in active:
                outcomes[arm - 1] = self._with_pairs(outcomes[arm - 1], arm, pair)
            self.seconds = trials.seconds(done)
            self._report(range(pair + 1) if is_rescored else [pair], outcomes, active)
            left = test.last - pair - 1
            if has_run and left and any(one.is_open for one in outcomes):
                each = self.seconds / (pair + 1)
                more = f"up to {left} more pair{'s' * (left > 1)}"
                typer.echo(f"{more}, about {format_duration(left * each)}", err=True)
        return outcomes

    def _fix_images(self, done: Sequence[Job], active: Sequence[int]) -> bool:
        """Fix the number of images, and return whether the pairs were scored again with more."""
        trials = self._trials
        failed = {job for job in done if (end := trials.result(job)) is None or end.state != "done"}
        arms = {0, *active} - {job.arm for job in failed}
        jobs = [job for job in done if job.arm in arms]
        if 0 not in arms or len(arms) == 1:
            return False
        trials.fix_images(jobs)
        return trials.run(jobs, self._runner)

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
        """Return whether `count` further trainings exceed the budget.

        Each is estimated by the mean of those that ran in full: a reused one takes almost no time.
        """
        if self._budget is None:
            return False
        each = self._trials.mean_seconds(done, self._measure)
        return self.seconds + count * each > self._budget

    def _report(
        self, pairs: Sequence[int], outcomes: Sequence[TrainingOutcome], active: Sequence[int]
    ) -> None:
        """Print the scores of these pairs, and what all show so far."""
        for arm in active:
            one = outcomes[arm - 1]
            if one.failure:
                typer.echo(f"{one.name}: {one.sentence()}", err=True)
                continue
            metric = one.metrics[0]
            for number in pairs:
                pair = one.pairs[number]
                sides = f"control {pair.control[metric]:.4g}, {one.name} {pair.change[metric]:.4g}"
                is_last = number == pairs[-1]
                so_far = f"; so far {one.main.describe()}" if is_last and one.main.interval else ""
                place = f"pair {number + 1} of at most {self._test.last}, seed {pair.seed}"
                typer.echo(f"{place}: {sides}{so_far}", err=True)


def _jobs(pair: int, active: Sequence[int]) -> list[Job]:
    """Return the trainings of a pair in their order, in which the arms alternate."""
    jobs = [Job(pair, arm) for arm in (0, *active)]
    return jobs if pair % 2 == 0 else jobs[::-1]
