"""The study of a search: killed at any time, in sequence or in parallel, no trial is lost or repeated."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.code_digest import library_version
from diffusion.search.search_config import SearchConfig
from diffusion.search.study import JOURNAL, SearchStudy, run_search
from diffusion.system.errors import DiffctlError
from diffusion.trials.trial_runs import Trial, TrialResult, TrialRunner
from flows.ray import trial_runner

LOG_RANGE = {"low": 0.01, "high": 1.0, "log": True}
SECTIONS = {
    "grid": SearchConfig(fields={"train.seed": (0, 1), "train.lr": (0.1, 0.2)}, method="grid"),
    "random": SearchConfig(fields={"train.lr.rate": LOG_RANGE}, trials=4),
    "tpe": SearchConfig(
        fields={"train.lr.rate": {"low": 0.01, "high": 1.0}, "model.attention_resolutions": ([4], [])},
        method="tpe",
        trials=12,
    ),
}


def objective(trial: Trial) -> TrialResult:
    """A score that the point decides; some trials fail."""
    values = [value if isinstance(value, int | float) else len(value) for value in trial.point.values()]
    if trial.number % 5 == 2:
        return TrialResult("failed", reason="it diverged")
    return TrialResult("done", sum((value - 0.3) ** 2 for value in values))


def study_of(folder: Path, section: SearchConfig) -> SearchStudy:
    """A study whose journal has the same study name in every folder."""
    return SearchStudy(folder / "test", section)


def run_all(folder: Path, section: SearchConfig, runner: TrialRunner | None = None) -> list[Trial]:
    runner = runner or TrialRunner(objective)
    return run_search(study_of(folder, section), runner, lambda trial: None, lambda number, result: None)


def cut_journal(source: Path, folder: Path, part: float) -> None:
    """Write a prefix of the source's journal, as a kill leaves one: it only grows."""
    data = (source / "test" / JOURNAL).read_bytes()
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "test" / JOURNAL).write_bytes(data[: math.floor(part * len(data))])


class Parallel(TrialRunner):
    """A runner whose trials end in the order of `picks`, killed after so many ends."""

    def __init__(self, room: int, picks: list[int], killed: float = math.inf) -> None:
        self.most, self.picks, self.killed = room, picks, killed
        self.running: list[Trial] = []
        self.started: list[int] = []

    def room(self) -> int:
        return self.most

    def start(self, trial: Trial) -> None:
        self.running.append(trial)
        self.started.append(trial.number)
        assert len(self.running) <= self.most

    def ended(self) -> list[tuple[int, TrialResult]]:
        if self.killed <= 0:
            raise KeyboardInterrupt
        self.killed -= 1
        pick = self.picks.pop() if self.picks else 0
        trial = self.running.pop(pick % len(self.running))
        return [(trial.number, objective(trial))]


@pytest.fixture(scope="module", params=SECTIONS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted search: its section, its folder and its trials."""
    folder, section = tmp_path_factory.mktemp(request.param), SECTIONS[request.param]
    trials = run_all(folder, section)
    assert all(trial.state in ("done", "failed") for trial in trials)
    return section, folder, trials


@settings(max_examples=12)
@given(part=st.floats(0, 1))
def test_kill_after_any_byte_of_the_journal_changes_nothing(finished, part: float) -> None:
    section, source, trials = finished
    with TemporaryDirectory() as name:
        cut_journal(source, Path(name), part)
        assert run_all(Path(name), section) == trials
        assert run_all(Path(name), section) == trials


@settings(max_examples=8)
@given(st.sampled_from(["grid", "random"]), st.integers(1, 5), st.lists(st.integers(0, 9)), st.integers(0, 4))
def test_parallel_trials_equal_sequential_ones(method, room, picks, killed) -> None:
    section = SECTIONS[method]
    with TemporaryDirectory() as name:
        wanted = run_all(Path(name) / "one", section)
        folder = Path(name) / "parallel"
        first = Parallel(room, list(picks), killed)
        try:
            run_all(folder, section, first)
        except KeyboardInterrupt:
            left = [one.number for one in study_of(folder, section).trials() if one.state == "running"]
            assert left == sorted(trial.number for trial in first.running)
        again = Parallel(room, list(picks))
        assert run_all(folder, section, again) == wanted
        ended = set(first.started) - {trial.number for trial in first.running}
        assert sorted(again.started) == [n for n in range(len(wanted)) if n not in ended]


@settings(max_examples=6)
@given(st.floats(0, 1), st.integers(2, 4))
def test_kill_of_parallel_tpe_keeps_the_started_trials(part: float, room: int) -> None:
    section = SECTIONS["tpe"].model_copy(update={"trials": 8})
    with TemporaryDirectory() as name:
        folder = Path(name)
        complete = run_all(folder, section, Parallel(room, [2, 0, 1]))
        cut_journal(folder, folder, part)
        left = study_of(folder, section).trials()
        trials = run_all(folder, section, Parallel(room, []))
        assert [trial.number for trial in trials] == list(range(8))
        assert [one.point for one in trials[: len(left)]] == [one.point for one in complete[: len(left)]]
        assert all(trial.state != "running" for trial in trials)


def test_more_trials_extend_a_search(tmp_path: Path) -> None:
    few = SECTIONS["random"]
    many = few.model_copy(update={"trials": 7})
    first = run_all(tmp_path / "a", few)
    assert run_all(tmp_path / "a", many)[: len(first)] == first
    assert run_all(tmp_path / "b", many) == run_all(tmp_path / "a", many)


def test_pruner_stops_trials_above_the_median(tmp_path: Path) -> None:
    """Also with parallel trials in processes of their own; the first report of a step stays."""
    section = SECTIONS["random"].model_copy(update={"prune": True, "trials": 7})
    study = study_of(tmp_path, section)
    for loss in (1.0, 1.1, 1.2):
        number = study.start({"train.lr.rate": loss / 2}).number
        for step in range(1, 6):
            study.report(number, step, loss)
        study.finish(number, TrialResult("done", loss))
    losses = {study.start({"train.lr.rate": loss / 4}).number: loss for loss in (0.9, 1.05, 1.5, 2.0)}

    def run(number: int) -> bool:
        own = study_of(tmp_path, section)
        found = [own.report(number, step, losses[number]) for step in range(1, 6)]
        own.report(number, 1, 99.0)
        return any(found)

    with ThreadPoolExecutor(4) as pool:
        pruned = dict(zip(losses.values(), pool.map(run, losses), strict=True))
    assert pruned == {0.9: False, 1.05: False, 1.5: True, 2.0: True}
    study.finish(6, TrialResult("pruned"))
    trials = study.trials()
    assert (trials[6].state, trials[6].value) == ("pruned", None)
    for trial in trials[3:]:
        assert trial.reports == dict.fromkeys(range(1, 6), losses[trial.number])


def test_damaged_journal_is_one_sentence(tmp_path: Path) -> None:
    run_all(tmp_path, SECTIONS["grid"])
    journal = tmp_path / "test" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"no json\n", *lines[2:]]))
    with pytest.raises(DiffctlError, match="is damaged"):
        run_all(tmp_path, SECTIONS["grid"])


def test_machine_without_the_project_or_with_other_code_is_refused(tmp_path: Path) -> None:
    for version, word in ((library_version(), "folder"), ("0123 with torch 1.0", "another diffctl or torch")):
        search = Path("runs/search/search")
        spec = trial_runner.TrialSpec(tmp_path, search, "k", version, ("-c", "0"), {})
        with pytest.raises(DiffctlError, match=word):
            trial_runner.run_trial(spec, 0)


def test_slots_need_all_resources_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 64.0}, {}]
    nodes = [{"Alive": True, "Resources": one} for one in machines] + [{"Alive": False}]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    for wanted, count in (({"CPU": 1, "GPU": 1}, 4), ({"CPU": 1, "GPU": 2}, 2), ({"CPU": 5}, 13)):
        assert trial_runner._count_free(wanted) == count
