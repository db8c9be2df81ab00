"""Benchmarks that no other test runs, as small as they can be."""

import re
import sys

import pytest

from benchmarks import ROOT, evaluation, run


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
