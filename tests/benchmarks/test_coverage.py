"""Whether intervals hold the truth as often as they say; `python -m benchmarks.coverage` tries more of it."""

import pytest

from benchmarks.coverage import Case, arguments, cases, main, measure

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


def test_any_row_of_a_table_can_be_asked_for():
    told = arguments().parse_args(["30", "--sizes", "256x5000", "1280x900", "--kinds", "1.5:rectified:worse"])
    assert told.draws == 30
    assert list(cases(told.sizes, kinds=told.kinds)) == [
        Case(256, 5000, 1.5, True, "worse", False),
        Case(1280, 900, 1.5, True, "worse", False),
    ]
    assert (1280, 1280) in {(case.dimension, case.count) for case in cases()}


@pytest.mark.parametrize(
    "asked",
    [["1"], ["--sizes", "64"], ["--sizes", "0x9"], ["--sizes", "64x2"], ["--kinds", "0:real:Gaussian"],
     ["--kinds", "0:Gaussian"], ["x"]],
)  # fmt: skip
def test_a_row_that_there_is_not_is_refused(asked, capsys):
    with pytest.raises(SystemExit) as end:
        arguments().parse_args(asked)
    assert end.value.code == 2
    assert "invalid" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_the_rows_that_are_asked_for(capsys):
    main(["4", "--sizes", "8x20", "--kinds", "0:Gaussian:real", "1:rectified:worse"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[:6] for row in rows[2:]] == [
        ["8", "20", "k^−0", "Gaussian", "real", "4"],
        ["8", "20", "k^−1", "rectified", "worse", "4"],
    ]
