"""The table of a search: a row for each setting, with the mean over its seeds."""

from dataclasses import replace

import pytest

from diffusion.choice.confidence import mean_interval
from diffusion.search.search_dir import Trial
from diffusion.search.setting_table import ScoredTrial, best_trial, setting_rows
from tests.helpers.scores_document import document

KD = "kd_effnet_lite0_64"


def scored(number: int, rate: float, seed: int, five: float, ten: float) -> ScoredTrial:
    """A trial of two cells."""
    found = document({(5, 0.0): five, (10, 0.0): ten})
    value = found.best.value
    return ScoredTrial(Trial(number, {"train.lr": rate, "train.seed": seed}, "done", value), found)


TRIALS = [
    scored(0, 0.1, 0, five=0.50, ten=0.10),  # the best value, but not the best mean
    scored(1, 0.1, 1, five=0.52, ten=0.90),
    scored(2, 0.2, 0, five=0.30, ten=0.40),
    scored(3, 0.2, 1, five=0.32, ten=0.44),
    scored(4, 0.3, 0, five=0.95, ten=0.99),
]


def test_setting_has_the_cell_of_the_best_mean_over_seeds() -> None:
    best, second, last = setting_rows(TRIALS)
    assert (best.point, best.trials, best.cell) == ({"train.lr": 0.2}, (2, 3), "steps5-eta0")
    assert best.value == pytest.approx(0.31)
    assert (second.point, second.cell) == ({"train.lr": 0.1}, "steps10-eta0")
    assert second.value == pytest.approx(0.5)
    assert (last.trials, last.value) == ((4,), 0.95)
    assert best_trial(best, TRIALS).number == 2


def test_gaps_within_the_spread_of_seeds_are_ties() -> None:
    best, second, last = setting_rows(TRIALS)
    assert (best.tied, second.tied, last.tied) == (None, True, False)
    assert second.interval == mean_interval([TRIALS[n].document.cells["steps10-eta0"] for n in (0, 1)], KD)
    values = best.as_json()
    assert values["interval"][0] < values["value"] < values["interval"][1]
    assert values["trials"] == [2, 3]


def test_points_drawn_again_are_no_further_seeds() -> None:
    repeated = [one._replace(trial=replace(one.trial, number=one.trial.number + 5)) for one in TRIALS]
    rows = setting_rows([*TRIALS, *repeated[1:]])
    assert [row.trials for row in rows] == [(2, 3, 7, 8), (0, 1, 6), (4, 9)]
    once = [row._replace(trials=again.trials) for row, again in zip(setting_rows(TRIALS), rows, strict=True)]
    assert rows == once
