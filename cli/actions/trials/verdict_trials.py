"""The trainings of a verdict: run pair by pair, resumed, and scored with enough images."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import typer

from diffusion.protocol.scores_document import CellScores, read_scores
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.files import write_json
from diffusion.system.section import Section
from diffusion.train.validation_loss import LOSS
from diffusion.trials import trial_runs
from diffusion.trials.trial_runs import Trial, TrialResult, TrialRunner, run_trials, trial_dir
from diffusion.verdict.arms import Arm, Metric
from diffusion.verdict.outcome import needed_images, scoring_noise

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

    @property
    def has_begun(self) -> bool:
        """Whether a training was started before."""
        return self.place(Job(0, 0)).parent.exists()

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
        if key not in self._known and (result := trial_runs.read_result(self.place(job))):
            scores = None
            if result.state == "done" and self.metric != "loss":
                scores = read_scores(self.place(job) / trial_runs.SCORES).cells[self.cells[job.arm].name]
            if scores is None or scores.num_images == self.images:
                self._known[key] = result, scores
        return self._known.get(key)

    def run(self, jobs: Sequence[Job], runner: TrialRunner) -> bool:
        """Run the trainings that have no result, in order; return whether there were any.

        Interrupted on a signal, after a save.
        """
        waiting = [job for job in jobs if self.result(job) is None]
        count = len(waiting)
        run_trials(runner, lambda _: self._begin(waiting.pop(0)) if waiting else None)
        return count > 0

    def seconds(self, jobs: Sequence[Job]) -> float:
        """Return what these trainings took with all interruptions, on this machine or another one."""
        return sum(trial_runs.read_elapsed(self.place(job)).seconds for job in jobs)

    def mean_seconds(self, jobs: Sequence[Job], measure: Callable[[], float]) -> float:
        """Return the mean duration of those of these trainings that ran in full.

        Without one it is what `measure` returned at first: a resumed verdict ends at the same pair.
        """
        done = [job for job in jobs if (end := self.result(job)) is not None and end.state == "done"]
        found = [trial_runs.read_elapsed(self.place(job)) for job in done]
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

    def _begin(self, job: Job) -> Trial:
        folder = self.place(job)
        (folder / trial_runs.RESULT).unlink(missing_ok=True)  # of fewer images
        control, arm = self.arms[0].config, self.arms[job.arm]
        seeds = control.train.seed + job.pair, control.sample.seed + job.pair
        trial_runs.write_trial_params(folder, arm.pair_values(seeds, self.cells[job.arm], self.images), {})
        typer.echo(f"pair {job.pair + 1}: {arm.name}, seed {self.seed(job)}", err=True)
        return Trial(self._number(job))
