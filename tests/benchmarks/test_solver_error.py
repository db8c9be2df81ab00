"""The benchmark of samplers: the page shows its results, and errors fall with the NFE."""

import json

import pytest

from benchmarks import solver_error
from benchmarks.solver_error import Case, measure
from docs.site.samplers_page import with_tables


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
