"""The course of a search: each trial is begun in the ledger before it is made, and ended there after."""

from collections.abc import Callable
from typing import Protocol

from diffusion.search.config import SearchConfig
from diffusion.search.ledger import Ledger
from diffusion.search.methods import METHODS
from diffusion.search.space import count_trials
from diffusion.search.trial import Ended, Trial

Run = Callable[[Trial], Ended]
"""Makes a trial, or goes on with it where it was stopped."""


class Runner(Protocol):
    """Makes trials, several at a time."""

    def room(self) -> int:
        """How many trials may be at work at this moment, at least one."""

    def start(self, trial: Trial) -> None:
        """Begin to make a trial, or go on with it where it was stopped."""

    def ended(self) -> list[tuple[int, Ended]]:
        """The numbers of trials that have ended since the last call, and how; waits a while for one."""


def search(ledger: Ledger, section: SearchConfig, run: Run) -> list[Trial]:
    """As `search_beside`, a trial after the other."""
    return search_beside(ledger, section, _OneByOne(run))


def search_beside(ledger: Ledger, section: SearchConfig, runner: Runner) -> list[Trial]:
    """Run all trials that the ledger does not have yet, first those that were cut short; returns all.

    What the runner raises ends the search, which the same call goes on with.
    """
    at_work: set[int] = set()
    while True:
        while len(at_work) < runner.room() and (trial := _next(ledger, section, at_work)):
            at_work.add(trial.number)
            runner.start(trial)
        if not at_work:
            return ledger.trials()
        for number, ended in runner.ended():
            ledger.end(number, ended)
            at_work.discard(number)


def _next(ledger: Ledger, section: SearchConfig, at_work: set[int]) -> Trial | None:
    """The next trial to make; None where all have ended or are `at_work`."""
    trials = ledger.trials()
    for trial in trials:
        if trial.state == "running" and trial.number not in at_work:
            return trial
    if len(trials) >= count_trials(section):
        return None
    return ledger.begin(METHODS[section.method](section, len(trials), trials))


class _OneByOne:
    """Makes a trial while it is waited for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begun: list[Trial] = []

    def room(self) -> int:
        return 1

    def start(self, trial: Trial) -> None:
        self._begun.append(trial)

    def ended(self) -> list[tuple[int, Ended]]:
        trial = self._begun.pop()
        return [(trial.number, self._run(trial))]
