"""What runs the trials of a search or a verdict."""

from collections.abc import Callable

from diffusion.search.search_dir import Trial, TrialResult


class TrialRunner:
    """Runs one trial at a time by calling `run`. A subclass may run several."""

    def __init__(self, run: Callable[[Trial], TrialResult]) -> None:
        self._run = run
        self._started: list[Trial] = []

    def room(self) -> int:
        """Return how many trials may run now, at least one."""
        return 1

    def start(self, trial: Trial) -> None:
        """Start a trial, or resume it."""
        self._started.append(trial)

    def ended(self) -> list[tuple[int, TrialResult]]:
        """Return the numbers and results of trials that ended since the last call; wait a while for one."""
        trial = self._started.pop()
        return [(trial.number, self._run(trial))]
