"""The ledger of a search: Optuna's journal file, in which a trial stands whole from its first line on.

What a killed process left of its last line is cut off before anything is added, and the lock is one that dies
with its holder: Optuna's own stays behind for half a minute. optuna-dashboard reads the file as it is.
"""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.search.config import SearchConfig
from diffusion.search.methods import distributions, params_of
from diffusion.search.space import Point
from diffusion.search.trial import Ended, State, Trial
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import file_lock
from diffusion.system.section import canonical_json

if TYPE_CHECKING:
    import optuna

JOURNAL, LOCK = "journal.log", "journal.lock"
POINT, REASON = "point", "reason"  # attributes of a trial beside its parameters
STARTUP_TRIALS = 3  # that are whole before one is ended early

STATES: dict[str, State] = {
    "RUNNING": "running",
    "WAITING": "running",
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


class _Lock:
    """Optuna's lock of a journal, by flock. One journal's object is used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: AbstractContextManager[None] | None = None

    def acquire(self) -> bool:
        """Wait until nobody else writes."""
        self._held = file_lock(self._path)
        self._held.__enter__()
        return True

    def release(self) -> None:
        """Let others write."""
        assert self._held is not None, "it is acquired first"
        self._held.__exit__(None, None, None)
        self._held = None


class Ledger:
    """The trials of the search in `folder`, as they stand at the moment; made where there is none.

    Another process may add to it meanwhile, which `trials` sees. DiffctlError where it is damaged.
    """

    def __init__(self, folder: Path, name: str, section: SearchConfig) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._section, self._path = section, folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._mend()
        lock: Any = _Lock(folder / LOCK)
        self._pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
        with self._readable():
            storage = JournalStorage(JournalFileBackend(str(self._path), lock_obj=lock))
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)

    def trials(self) -> list[Trial]:
        """All trials in order."""
        with self._readable():
            return [_trial(found) for found in self._study.get_trials(deepcopy=False)]

    def begin(self, point: Point) -> Trial:
        """Add a trial that runs from now on, in one line of the journal."""
        from optuna.trial import TrialState, create_trial

        self._mend()
        with _untold():
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=params_of(self._section, point),
                    distributions=distributions(self._section),
                    user_attrs={POINT: canonical_json(point)},
                )
            )
        return self.trials()[-1]

    def end(self, number: int, ended: Ended) -> None:
        """Say how a trial ended; nothing where that is said already."""
        from optuna.trial import TrialState

        self._mend()
        if self.trials()[number].state != "running":
            return
        storage, trial_id = self._study._storage, self._id(number)
        if ended.reason:
            storage.set_trial_user_attr(trial_id, REASON, ended.reason)
        state = next(name for name, known in STATES.items() if known == ended.state and name != "WAITING")
        values = None if ended.value is None else [ended.value]
        storage.set_trial_state_values(trial_id, TrialState[state], values)

    def report(self, number: int, step: int, loss: float) -> bool:
        """Note a trial's validation loss after `step` steps, once; whether it should end early."""
        self._mend()
        if step not in self.trials()[number].reports and math.isfinite(loss):
            self._study._storage.set_trial_intermediate_value(self._id(number), step, loss)
        return self._pruner.prune(self._study, self._study.get_trials(deepcopy=False)[number])

    def _mend(self) -> None:
        """Cut what a process that was killed while it wrote left: nobody else writes at this moment."""
        with file_lock(self._path.with_name(LOCK)):
            _drop_torn_line(self._path)

    def _id(self, number: int) -> int:
        return self._study.get_trials(deepcopy=False)[number]._trial_id

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            with _untold():
                yield
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise DiffctlError(
                f"{self._path} is damaged ({type(error).__name__}): remove its folder to begin anew; "
                "trainings that are finished stay in runs/train"
            ) from None


def _trial(found: "optuna.trial.FrozenTrial") -> Trial:
    state = STATES[found.state.name]
    return Trial(
        number=found.number,
        point=json.loads(found.user_attrs[POINT]),
        state=state,
        value=found.value if state == "done" else None,
        reports=dict(found.intermediate_values),
        reason=str(found.user_attrs.get(REASON, "")),
    )


@contextmanager
def _untold() -> Iterator[None]:
    """Without what Optuna warns its callers of."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left of its last line."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
