"""A search as an Optuna study: proposals, results in a journal file, and the loop over all trials.

A trial starts as one line of the journal, and a torn last line is removed before the next write. So a killed
search continues like one that was not killed. optuna-dashboard reads the file.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from diffusion.search.search_config import Point, Range, SearchConfig, count_trials, grid
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import file_lock
from diffusion.system.section import canonical_json
from diffusion.trials.trial_runs import State, Trial, TrialResult, TrialRunner, run_trials

JOURNAL, LOCK = "journal.log", "journal.lock"
POINT, REASON = "point", "reason"  # user attributes of a trial
MIN_COMPLETE = 3  # trials before one is pruned
STATES: dict[State, TrialState] = {
    "running": TrialState.RUNNING,
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class SearchStudy:
    """The trials of the search in `folder`, shared by processes; DiffctlError if the journal is damaged."""

    def __init__(self, folder: Path, section: SearchConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.section, self._path = section, folder / JOURNAL
        self._repair()
        with self._readable():
            lock: Any = FileLock(folder / LOCK, poll_interval=0.02)  # Optuna's own blocks after a kill
            storage = JournalStorage(JournalFileBackend(str(self._path), lock))
            self._study = optuna.create_study(
                study_name=folder.name,
                storage=storage,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=MIN_COMPLETE),
                load_if_exists=True,
            )

    def trials(self) -> list[Trial]:
        """Return all trials in order."""
        return [_as_trial(one) for one in self._frozen()]

    def propose(self, number: int) -> Point:
        """Return the point of trial `number`, a function of the seed, the number and the trials so far."""
        if self.section.method == "grid":
            return grid(self.section)[number]
        seed = int(np.random.SeedSequence([self.section.seed, number]).generate_state(1)[0])
        # Running trials count as bad ones (constant_liar, which is experimental).
        with warnings.catch_warnings(action="ignore"):
            random = optuna.samplers.RandomSampler(seed)
            tpe = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            study = optuna.create_study(sampler=tpe if self.section.method == "tpe" else random)
        study.add_trials(self._frozen())
        params = study.ask(_distributions(self.section)).params
        return {
            name: params[name] if isinstance(values, Range) else json.loads(params[name])
            for name, values in sorted(self.section.fields.items())
        }

    def start(self, point: Point) -> Trial:
        """Add a running trial with this point."""
        self._repair()
        params = {
            name: point[name] if isinstance(values, Range) else canonical_json(point[name])
            for name, values in sorted(self.section.fields.items())
        }
        trial = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=_distributions(self.section),
            user_attrs={POINT: canonical_json(point)},
        )
        self._study.add_trial(trial)
        return self.trials()[-1]

    def finish(self, number: int, result: TrialResult) -> None:
        """Store the result of a trial; the first one stays."""
        self._repair()
        if self.trials()[number].state != "running":
            return
        if result.reason:
            self._trial(number).set_user_attr(REASON, result.reason)
        self._study.tell(number, result.value, STATES[result.state])

    def report(self, number: int, step: int, loss: float) -> bool:
        """Store the validation loss of a trial after `step` steps; return whether to prune it."""
        self._repair()
        trial = self._trial(number)
        if step not in self.trials()[number].reports and math.isfinite(loss):
            trial.report(loss, step)
        return trial.should_prune()

    def _frozen(self) -> list[FrozenTrial]:
        with self._readable():
            return self._study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._frozen()[number]._trial_id)

    def _repair(self) -> None:
        """Remove a line that a killed process wrote in part."""
        with file_lock(self._path.with_name(LOCK)):
            if not self._path.exists():
                return
            with open(self._path, "r+b") as file:
                data = file.read()
                if not data.endswith(b"\n"):
                    file.truncate(data.rfind(b"\n") + 1)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            why = type(error).__name__
            raise DiffctlError(f"{self._path} is damaged ({why}): remove its folder to start again") from None


def _as_trial(frozen: FrozenTrial) -> Trial:
    state = next(name for name, one in STATES.items() if one is frozen.state)
    return Trial(
        number=frozen.number,
        point=json.loads(frozen.user_attrs[POINT]),
        state=state,
        value=frozen.value if state == "done" else None,
        reports=dict(frozen.intermediate_values),
        reason=str(frozen.user_attrs.get(REASON, "")),
    )


def _distributions(section: SearchConfig) -> dict[str, BaseDistribution]:
    """Return the fields as Optuna's distributions; listed values as JSON, since they may be lists."""
    found: dict[str, BaseDistribution] = {}
    for name, values in sorted(section.fields.items()):
        if not isinstance(values, Range):
            found[name] = CategoricalDistribution(tuple(map(canonical_json, values)))
        elif isinstance(values.low, int) and isinstance(values.high, int):
            found[name] = IntDistribution(values.low, values.high, log=values.log)
        else:
            found[name] = FloatDistribution(values.low, values.high, log=values.log)
    return found


def run_search(
    study: SearchStudy,
    runner: TrialRunner,
    begin: Callable[[Trial], TrialResult | None],
    end: Callable[[int, TrialResult], None],
) -> list[Trial]:
    """Run all trials that have no result, interrupted ones first; return all trials.

    `begin` may return the result of a trial before it runs, `end` receives each result.
    """

    def finish(number: int, result: TrialResult) -> None:
        end(number, result)
        study.finish(number, result)

    def propose(running: set[int]) -> Trial | None:
        while (trial := _next_trial(study, running)) and (known := begin(trial)) is not None:
            finish(trial.number, known)
        return trial

    run_trials(runner, propose, finish)
    return study.trials()


def _next_trial(study: SearchStudy, running: set[int]) -> Trial | None:
    trials = study.trials()
    for trial in trials:
        if trial.state == "running" and trial.number not in running:
            return trial
    if len(trials) >= count_trials(study.section):
        return None
    return study.start(study.propose(len(trials)))
