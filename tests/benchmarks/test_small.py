"""Benchmarks as small as they can be: solver error, quality for a time, the page of verdicts, diffusers."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ROOT, diffusers_entry, evaluation, quality, run, solver_error
from benchmarks.diffusers_recipes import RECIPES
from benchmarks.evidence import PAGE, read_verdicts
from benchmarks.quality import ElapsedRate, Stopwatch
from benchmarks.solver_error import Case, measure
from diffusion.choice.paired_test import PairedTest
from diffusion.config import load
from diffusion.system.devices import default_device
from diffusion.train.optimizers.lr_schedule import CosineLR, learning_rate
from diffusion.train.plan import plan_training
from diffusion.verdict.outcome import Pair, TrainingOutcome
from docs.site.evidence_page import missing_keys, with_evidence
from docs.site.samplers_page import with_tables

DIGITS = quality.PROFILES / "digits.yaml"
SIZE = quality.Size(seconds=1, images=30, steps=2)
MARKS = "a\n<!-- evidence -->\n<!-- /evidence -->\nb"
pytest.importorskip("diffusers", reason="an extra")


@pytest.mark.long
@pytest.mark.parametrize("name", ["data", "library", "pipeline", "serving", "sweep", "training"])
def test_benchmark_runs_and_prints_its_goals(name: str) -> None:
    small = ["--seconds", "1"] if name == "serving" else ["--small"]
    output = run(ROOT, sys.executable, "-m", f"benchmarks.{name}", *small)
    assert "(goal: " in output


@pytest.mark.slow
@pytest.mark.long
def test_the_numbers_are_those_of_torch_fidelity(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.main(small=True)
    found = re.search(r"largest relative difference: (\S+)", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 1e-6


def test_page_shows_the_stored_results() -> None:
    results = json.loads(solver_error.RESULTS.read_text(encoding="utf-8"))
    page = solver_error.PAGE.read_text(encoding="utf-8")
    assert with_tables(page, results) == page, "run `python -m benchmarks.solver_error --render`"
    assert tuple(results["nfe"]) == solver_error.NFES
    for spacings in results["errors"].values():
        assert spacings.keys() == solver_error.SPACINGS.keys()
        assert all(methods.keys() == solver_error.METHODS.keys() for methods in spacings.values())


@pytest.mark.parametrize(("method", "calls"), [("heun, straight", (9, 49)), ("ipndm, order 3", (10, 50))])
def test_more_calls_are_closer_to_the_exact_flow(
    monkeypatch: pytest.MonkeyPatch, method: str, calls: tuple[int, int]
) -> None:
    monkeypatch.setattr(solver_error, "POINTS", 20)
    monkeypatch.setattr(solver_error, "FINE_STEPS", 100)
    cases = [Case("flow", "uniform", method, nfe) for nfe in (10, 50)]
    assert tuple(case.settings().nfe for case in cases) == calls
    few, many = (measure(case)["flow"] for case in cases)
    assert many < few / 5


def test_rate_is_the_schedules_at_the_elapsed_share(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(quality.time, "perf_counter", lambda: now[0])
    schedule, watch = CosineLR(rate=0.003, warmup=10), Stopwatch(240)
    rate = ElapsedRate(schedule, 100, watch)
    for share in (0.0, 0.05, 0.5, 0.99, 1.0, 1.01):
        now[0] = 100 + 240 * share
        step = min(99, int(100 * share + 1e-9))
        assert learning_rate(rate, 7, 10**8) == learning_rate(schedule, step, 100)


@pytest.mark.slow
def test_training_lasts_as_long_as_given_and_is_scored(tmp_path):
    config, device = load(DIGITS), default_device()
    train, test = quality.prepared(config, tmp_path)
    images, how = quality.ours(config, train, SIZE, device)
    assert images.shape == (30, 8, 8, 1)
    assert "steps of batch 64" in how
    judge = quality.Judge(test.images, device)
    assert judge(images) > judge(train.images[:30]) > judge(test.images) - 1e-6


def test_page_shows_the_stored_verdicts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_evidence(page, read_verdicts()) == page


def test_row_has_what_the_verdict_found() -> None:
    pairs = tuple(Pair(seed, {"fd": 100.0}, {"fd": 70.0 + seed}) for seed in range(3))
    found = TrainingOutcome("lr=1", ("train.lr 2 → 1",), ("fd",), 0.05, test=PairedTest(3, 12), pairs=pairs)
    failed = TrainingOutcome("a|b.yaml", ("x 1 → 2",), ("fd",), 0.05, failure="it is NaN")
    verdict = {"metric": "fd", "images": 1000, "changes": [found.as_json(), failed.as_json()]}
    assert missing_keys(verdict) == ["machine", "commit", "command"]
    verdict |= {"machine": "a CPU", "commit": "1234567", "command": "diffctl verdict lr=1 | cat"}
    *_, first, second = with_evidence(MARKS, [verdict]).partition("</div>")[0].strip().splitlines()
    assert found.sentence() == "better by 29.0 ± 5.5 (95%) after 3 pairs: keep it"
    ends = "−29.0 | −34.5 to −23.5 | 3 | **better** | a CPU | `1234567` | `diffctl verdict lr=1 | cat` |"
    assert first == f"| `lr=1` | fd, 1,000 images | {ends}"
    assert "| `a|b.yaml`: x 1 → 2 | fd, 1,000 images |  |  | 0 | **failed** |" in second


def test_equal_scores_are_no_difference() -> None:
    pairs = tuple(Pair(seed, {"fd": 100.0}, {"fd": 100.0}) for seed in range(3))
    found = TrainingOutcome("ema=1", ("x",), ("fd",), 0.05, test=PairedTest(3, 12), pairs=pairs)
    verdict = {"metric": "fd", "images": 500, "changes": [found.as_json()]}
    verdict |= {"machine": "a CPU", "commit": "1234567", "command": "diffctl verdict ema=1"}
    assert "| fd, 500 images | 0 | 0 to 0 | 3 | no difference |" in with_evidence(MARKS, [verdict])


def test_rate_rises_by_steps_and_falls_by_the_clock() -> None:
    example, before = RECIPES["diffusers-example"], RECIPES["diffusers"]
    assert example.rate_at(249, 0.0) == pytest.approx(1e-4 / 2)
    assert example.rate_at(1000, 0.25) == pytest.approx(1e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert before.rate_at(0, 0.0) == before.rate_at(99, 0.9) == 1e-3
    assert len(list(RECIPES["diffusers-tuned"].candidates())) == 12


@pytest.mark.slow
def test_search_is_resumed_and_its_cost_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES["diffusers-tuned"], searched=((4, 8), (1e-3,)))
    monkeypatch.setitem(RECIPES, "small", recipe)
    config, device = load(quality.PROFILES / "digits.yaml"), default_device()
    store, test = quality.prepared(config, tmp_path / "data")
    judge = quality.Judge(test.images, device)
    judges = SimpleNamespace(choice=judge, build=judge, report_on=lambda images, file: {"fd": judge(images)})
    plan = plan_training(config, store.meta, device)
    started = diffusers_entry.Run(plan, store, quality.Size(0.5, 40, 2), device)
    arguments = (started, judges, tmp_path, tmp_path / "kept.npy")
    first = diffusers_entry.run("small", *arguments)
    assert first["search"]["trainings"] == 4  # two short ones, and both of them whole
    assert first["search"]["seconds"] == pytest.approx(sum(one[1] for one in searched(tmp_path)), abs=0.1)
    assert [len(one["fd"]) for one in first["tried"]] == [1, 1, 3, 3]  # averages
    best = min(first["tried"][2:], key=lambda one: min(one["fd"].values()))
    assert best["change"].items() >= {name: first["sample"][name] for name in ("batch", "rate")}.items()
    assert first["average"] == f"decay {min(best['fd'], key=best['fd'].__getitem__)}"
    assert (first["batch"], first["nfe"]) == (best["change"]["batch"], 2)
    before = searched(tmp_path)
    assert diffusers_entry.run("small", *arguments)["tried"] == first["tried"]
    assert searched(tmp_path) == before


def searched(folder: Path) -> list[tuple[str, float]]:
    """Return the stored trainings of the search, with their seconds."""
    files = sorted((folder / "search/small").glob("*.json"))
    return [(file.name, json.loads(file.read_text())["seconds"]) for file in files]
