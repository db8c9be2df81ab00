"""Benchmarks that no other test runs, as small as they can be: they run and print their goals."""

import sys

import pytest

from benchmarks import ROOT, run


@pytest.mark.long
@pytest.mark.parametrize("name", ["data", "library", "pipeline", "serving", "sweep", "training"])
def test_benchmark_runs_and_prints_its_goals(name: str) -> None:
    small = ["--seconds", "1"] if name == "serving" else ["--small"]
    output = run(ROOT, sys.executable, "-m", f"benchmarks.{name}", *small)
    assert "(goal: " in output
