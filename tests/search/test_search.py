"""The driver over its ledger: whatever is killed when, no trial is lost, made twice or chosen otherwise."""

import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion.search.config import SearchConfig
from diffusion.search.driver import search
from diffusion.search.ledger import JOURNAL, Ledger
from diffusion.search.trial import Ended, Trial
from diffusion.system.errors import DiffctlError

SECTIONS = {
    "grid": SearchConfig(fields={"train.seed": (0, 1), "train.lr": (0.1, 0.2)}, method="grid"),
    "random": SearchConfig(fields={"train.lr.rate": {"low": 0.01, "high": 1.0, "log": True}}, trials=4),
    "tpe": SearchConfig(
        fields={"train.lr.rate": {"low": 0.01, "high": 1.0}, "model.attention": ([4], [])},
        method="tpe",
        trials=12,
    ),
}


def objective(trial: Trial) -> Ended:
    """A score that the point decides; some trials fail."""
    values = [value if isinstance(value, int | float) else len(value) for value in trial.point.values()]
    if trial.number % 5 == 2:
        return Ended("failed", reason="it diverged")
    return Ended("done", sum((value - 0.3) ** 2 for value in values))


def whole(folder: Path, section: SearchConfig) -> list[Trial]:
    return search(Ledger(folder, "test", section), section, objective)


@pytest.fixture(scope="module", params=SECTIONS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A search that nothing stopped: its section, its journal and its trials."""
    folder = tmp_path_factory.mktemp(request.param)
    section = SECTIONS[request.param]
    trials = whole(folder, section)
    assert all(trial.state in ("done", "failed") for trial in trials)
    return section, (folder / JOURNAL).read_bytes(), trials


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(part=st.floats(0, 1))
def test_killed_after_any_byte_of_the_journal_it_ends_as_if_it_had_not_been(finished, part: float) -> None:
    """The journal alone is durable and only grows: what a kill leaves is a beginning of it."""
    section, journal, trials = finished
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / JOURNAL).write_bytes(journal[: math.floor(part * len(journal))])
        assert whole(folder, section) == trials
        assert whole(folder, section) == trials


def test_a_trial_that_was_cut_short_goes_on_before_another_begins(tmp_path: Path) -> None:
    section, seen = SECTIONS["grid"], []

    def stopped(trial: Trial) -> Ended:
        seen.append(trial.number)
        if len(seen) in (2, 3):
            raise KeyboardInterrupt
        return objective(trial)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(Ledger(tmp_path, "test", section), section, stopped)
    trials = search(Ledger(tmp_path, "test", section), section, stopped)
    assert seen == [0, 1, 1, 1, 2, 3]
    assert [trial.number for trial in trials] == [0, 1, 2, 3]


def test_more_trials_go_on_with_a_search(tmp_path: Path) -> None:
    few = SECTIONS["random"]
    many = few.model_copy(update={"trials": 7})
    first = whole(tmp_path, few)
    assert whole(tmp_path, many)[: len(first)] == first
    with TemporaryDirectory() as other:
        assert whole(Path(other), many) == whole(tmp_path, many)


def test_tpe_learns_from_what_was(tmp_path: Path) -> None:
    """Its later trials lie nearer to the least than as many that are drawn."""

    def distance(trial: Trial) -> Ended:
        return Ended("done", abs(trial.point["train.lr.rate"] - 0.3))

    late = {}
    for method in ("tpe", "random"):
        fields = {"train.lr.rate": {"low": 0.0, "high": 1.0}}
        section = SearchConfig(fields=fields, method=method, trials=30)
        trials = search(Ledger(tmp_path / method, "test", section), section, distance)
        late[method] = statistics.fmean(trial.value for trial in trials[15:])
    assert late["tpe"] < 0.7 * late["random"]


def test_held_out_losses_end_what_is_over_the_median_of_those_before(tmp_path: Path) -> None:
    section = SECTIONS["random"].model_copy(update={"prune": True, "trials": 6})
    ledger = Ledger(tmp_path, "test", section)
    curves = [1.0, 1.1, 1.2, 0.9, 2.0]

    def run(trial: Trial) -> Ended:
        if trial.number >= len(curves):
            return Ended("done", 0.0)
        loss = curves[trial.number]
        again = Ledger(tmp_path, "test", section)  # as the trial's own process
        for step in (1, 2, 3):
            again.report(trial.number, step, 99.0 if step == 0 else loss)
            if again.report(trial.number, step, 99.0):  # a step's first report stays
                return Ended("pruned")
        return Ended("done", loss)

    trials = search(ledger, section, run)
    assert [trial.state for trial in trials] == ["done", "done", "done", "done", "pruned", "done"]
    assert trials[4].reports == {1: 2.0}
    assert trials[0].reports == {1: 1.0, 2: 1.0, 3: 1.0}
    assert trials[4].value is None


def test_a_damaged_journal_is_a_sentence(tmp_path: Path) -> None:
    whole(tmp_path, SECTIONS["grid"])
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"no json\n", *lines[2:]]))
    with pytest.raises(DiffctlError, match="is damaged"):
        whole(tmp_path, SECTIONS["grid"])
