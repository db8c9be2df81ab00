"""Trials beside each other: the set of trials, the journal and the pruner, whatever ends when."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.code_digest import library_version
from diffusion.search.driver import search, search_beside
from diffusion.search.ledger import JOURNAL, Ledger
from diffusion.search.methods import METHODS
from diffusion.search.trial import Ended, Trial
from diffusion.system.errors import DiffctlError
from flows.ray.trial_runner import TrialSpec, count_slots, run_trial
from tests.search.test_search import SECTIONS, objective


class Beside:
    """A runner whose trials end in the order that `picks` says; `killed` after so many ends."""

    def __init__(self, room: int, picks: list[int], killed: float = math.inf) -> None:
        self.most, self.picks, self.killed = room, picks, killed
        self.at_work: list[Trial] = []
        self.started: list[int] = []

    def room(self) -> int:
        return self.most

    def start(self, trial: Trial) -> None:
        self.at_work.append(trial)
        self.started.append(trial.number)
        assert len(self.at_work) <= self.most

    def ended(self) -> list[tuple[int, Ended]]:
        if self.killed <= 0:
            raise KeyboardInterrupt
        self.killed -= 1
        pick = self.picks.pop() if self.picks else 0
        trial = self.at_work.pop(pick % len(self.at_work))
        return [(trial.number, objective(trial))]


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["grid", "random"]), st.integers(1, 5), st.lists(st.integers(0, 9)), st.integers(0, 4))
def test_the_trials_are_those_of_one_after_the_other(method, room, picks, killed) -> None:
    section = SECTIONS[method]
    with TemporaryDirectory() as name:
        wanted = search(Ledger(Path(name) / "one", "test", section), section, objective)
        folder = Path(name) / "beside"
        first = Beside(room, list(picks), killed)
        try:
            search_beside(Ledger(folder, "test", section), section, first)
        except KeyboardInterrupt:
            cut_short = sorted(trial.number for trial in first.at_work)
            assert [
                trial.number for trial in Ledger(folder, "test", section).trials() if trial.state == "running"
            ] == cut_short
        again = Beside(room, list(picks))
        assert search_beside(Ledger(folder, "test", section), section, again) == wanted
        ended = set(first.started) - {trial.number for trial in first.at_work}
        assert sorted(again.started) == [n for n in range(len(wanted)) if n not in ended]


@settings(max_examples=6, deadline=None)
@given(st.floats(0, 1), st.integers(2, 4))
def test_killed_after_any_byte_of_the_journal_no_trial_is_lost_or_made_twice(part: float, room: int) -> None:
    section = SECTIONS["tpe"].model_copy(update={"trials": 8})
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole = search_beside(Ledger(folder, "test", section), section, Beside(room, [2, 0, 1]))
        journal = (folder / JOURNAL).read_bytes()
        (folder / JOURNAL).write_bytes(journal[: math.floor(part * len(journal))])
        left = Ledger(folder, "test", section).trials()
        trials = search_beside(Ledger(folder, "test", section), section, Beside(room, []))
        assert [trial.number for trial in trials] == list(range(8))
        assert [trial.point for trial in trials][: len(left)] == [trial.point for trial in whole][: len(left)]
        assert all(trial.state != "running" for trial in trials)


def test_tpe_keeps_away_from_where_a_trial_is_at_work() -> None:
    """The same seed and number, the same trials that have ended: only the one at work differs."""
    section = SECTIONS["tpe"].model_copy(update={"fields": {"model.attention": ([4], [])}, "trials": 30})
    before = [
        Trial(n, {"model.attention": [4] if n % 2 else []}, "done", 0.1 if n % 2 else 0.9) for n in range(10)
    ]
    propose = METHODS["tpe"]
    good = [number for number in range(10, 40) if propose(section, number, before)["model.attention"] == [4]]
    busy = [Trial(10 + n, {"model.attention": [4]}) for n in range(8)]
    still = [n for n in good if propose(section, n, [*before, *busy])["model.attention"] == [4]]
    assert len(good) > 20
    assert len(still) < len(good)


def test_reports_of_trials_at_work_are_all_kept_and_judged_together(tmp_path: Path) -> None:
    """Three were whole before; of four at work at once, those over the median end early."""
    section = SECTIONS["random"].model_copy(update={"prune": True, "trials": 7})
    ledger = Ledger(tmp_path, "test", section)
    for loss in (1.0, 1.1, 1.2):
        number = ledger.begin({"train.lr.rate": loss / 2}).number
        for step in range(1, 6):
            ledger.report(number, step, loss)
        ledger.end(number, Ended("done", loss))
    losses = {ledger.begin({"train.lr.rate": loss / 2}).number: loss for loss in (0.9, 1.05, 1.5, 2.0)}

    def at_work(number: int) -> list[bool]:
        own = Ledger(tmp_path, "test", section)  # as the trial's own process
        return [own.report(number, step, losses[number]) for step in range(1, 6)]

    with ThreadPoolExecutor(4) as pool:
        judged = dict(zip(losses, pool.map(at_work, losses), strict=True))
    assert {losses[n]: any(said) for n, said in judged.items()} == {
        0.9: False,
        1.05: False,
        1.5: True,
        2.0: True,
    }
    for trial in ledger.trials()[3:]:
        assert trial.reports == dict.fromkeys(range(1, 6), losses[trial.number])


def test_a_place_is_all_that_a_trial_needs_on_one_machine() -> None:
    machines = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 64.0}, {}]
    assert count_slots(machines, {"CPU": 1, "GPU": 1}) == 4
    assert count_slots(machines, {"CPU": 2, "GPU": 1}) == 2
    assert count_slots(machines, {"CPU": 1, "GPU": 2}) == 2
    assert count_slots(machines, {"CPU": 5}) == 13
    assert count_slots([], {"CPU": 1}) == 0


def task(folder: Path, version: str) -> TrialSpec:
    return TrialSpec(folder, Path("runs/search/search"), "k", version, ("-c", "0"), {}, 1)


def test_a_machine_without_the_project_s_folder_or_with_other_code_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiffctlError, match="machines of a search share the project's folder"):
        run_trial(task(tmp_path, library_version()), 0)
    with pytest.raises(DiffctlError, match="another diffctl or torch"):
        run_trial(task(tmp_path, "0123 with torch 1.0"), 0)
