"""The outcome file of a stage: written on failure alone, and not inherited by child processes."""

import os
import signal
import sys
from collections.abc import Callable

import pytest

from cli import main
from cli.stages.used_inputs import InputsChanged
from diffusion.system.errors import DiffctlError, TemporaryError, UsageError
from diffusion.system.signals import make_interrupted
from flows.stage_outcome import VARIABLE, StageOutcome, read_outcome

FULL = "a cannot be written (Full): free some space"


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def interrupted() -> None:
    """Lose the exception of the signal, as a library may."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        raise KeyError from None


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (raising(UsageError("wrong")), StageOutcome("refused", "wrong", 2)),
        (raising(TemporaryError("away")), StageOutcome("temporary", "away", 75)),
        (raising(InputsChanged("edited")), StageOutcome("refused", "edited", 75)),
        (raising(DiffctlError("it failed")), StageOutcome("failed", "it failed", 1)),
        (raising(OSError(28, "Full", "a")), StageOutcome("failed", FULL, 1)),
        (raising(KeyError("x")), StageOutcome("crashed", "KeyError: 'x'", 1)),
        (interrupted, StageOutcome("interrupted", str(make_interrupted(signal.SIGTERM)), 143)),
        (sys.exit, None),
    ],
)
def test_a_failure_is_written_and_its_path_is_not_inherited(tmp_path, monkeypatch, work, outcome) -> None:
    inherited: list[str | None] = []

    def app(obj: object) -> None:
        inherited.append(os.environ.get(VARIABLE))
        work()

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "outcome.json"))
    with pytest.raises((SystemExit, KeyError)) as end:
        main.main()
    assert inherited == [None]
    assert read_outcome(tmp_path / "outcome.json") == outcome
    crashed = outcome is not None and outcome.kind == "crashed"
    assert isinstance(end.value, KeyError) == crashed
    assert crashed or end.value.code == (outcome.exit_code if outcome else 0)  # type: ignore[union-attr]
