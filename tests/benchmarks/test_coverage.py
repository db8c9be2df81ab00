"""Whether intervals hold the truth as often as they say; `python -m benchmarks.coverage` tries more of it."""

import pytest

from benchmarks.coverage import Case, measure

SAME = {"dimension": 64, "decay": 0.0, "rectified": False, "model": "real"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "draws"), [(50, 150), (63, 150), (64, 150), (65, 150), (200, 150), (1000, 100)]
)
def test_intervals_of_many_directions_hold_the_truth(count, draws):
    """Nominally 95 %; of 150 draws three standard deviations of chance are 5 %."""
    found = measure(Case(**SAME, count=count, kernel=count == 200), draws)
    assert 0.85 < found.pop("too wide") < 1.2
    for name, share in found.items():
        assert share > 0.89, name
    assert sum(found.values()) / len(found) < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("model", ["real", "worse"])
def test_intervals_of_few_directions_are_too_wide_rather_than_too_narrow(model):
    """Rectified features with a steep spectrum: half of their variance lies in four directions."""
    found = measure(Case(64, 200, 1.5, True, model, kernel=True), 150)
    assert 1 <= found.pop("too wide") < 1.6
    for name, share in found.items():
        assert share > 0.89, name
