"""The table of a search: a row for each setting, with the mean over its seeds."""

from dataclasses import replace

import pytest

from diffusion.choice.confidence import mean_interval
from diffusion.search.setting_table import best_trial, setting_rows
from diffusion.trials.trial_runs import State, Trial
from tests.helpers.scores_document import document

KD = "kd_effnet_lite0_64"


def trial(number: int, rate: float, seed: int, state: State = "done") -> Trial:
    return Trial(number, {"train.lr": rate, "train.seed": seed}, state)


TRIALS = [trial(0, 0.1, 0), trial(1, 0.1, 1), trial(2, 0.2, 0), trial(3, 0.2, 1), trial(4, 0.3, 0)]
CELLS = [(0.50, 0.10), (0.52, 0.90), (0.30, 0.40), (0.32, 0.44), (0.95, 0.99)]  # the first is the best value
SCORES = {number: document({(5, 0.0): five, (10, 0.0): ten}) for number, (five, ten) in enumerate(CELLS)}


def test_setting_has_the_cell_of_the_best_mean_over_seeds() -> None:
    best, second, last = setting_rows(TRIALS, SCORES)
    assert (best.point, best.trials, best.cell) == ({"train.lr": 0.2}, (2, 3), "steps5-eta0")
    assert best.value == pytest.approx(0.31)
    assert (second.point, second.cell) == ({"train.lr": 0.1}, "steps10-eta0")
    assert second.value == pytest.approx(0.5)
    assert (last.trials, last.value) == ((4,), 0.95)
    assert best_trial(best, SCORES) == 2


def test_gaps_within_the_spread_of_seeds_are_ties() -> None:
    best, second, last = setting_rows(TRIALS, SCORES)
    assert (best.tied, second.tied, last.tied) == (None, True, False)
    assert second.interval == mean_interval([SCORES[n].cells["steps10-eta0"] for n in (0, 1)], KD)
    values = best.as_json()
    assert values["interval"][0] < values["value"] < values["interval"][1]
    assert values["trials"] == [2, 3]


def test_points_drawn_again_are_no_further_seeds() -> None:
    repeated = [replace(one, number=one.number + 5) for one in TRIALS[1:]]
    scores = {**SCORES, **{one.number: SCORES[one.number - 5] for one in repeated}}
    rows = setting_rows([*TRIALS, *repeated], scores)
    assert [row.trials for row in rows] == [(2, 3, 7, 8), (0, 1, 6), (4, 9)]
    once = setting_rows(TRIALS, SCORES)
    assert rows == [row._replace(trials=again.trials) for row, again in zip(once, rows, strict=True)]


@pytest.mark.parametrize("state", ["pruned", "failed"])
def test_setting_with_a_pruned_seed_is_behind_those_with_scores_of_all(state: State) -> None:
    """Its mean is of the seeds that were not pruned. A seed that another trial scored is complete."""
    rows = setting_rows([*TRIALS, trial(5, 0.2, 2, state), trial(6, 0.3, 0, state)], SCORES)
    assert [row.point["train.lr"] for row in rows] == [0.1, 0.3, 0.2]
    assert [(row.unscored, row.tied) for row in rows] == [((), None), ((), True), ((5,), None)]
    assert rows[2].as_json()["unscored"] == [5]
    (alone,) = setting_rows([trial(0, 0.1, 0), trial(5, 0.1, 1, state)], SCORES)
    assert alone.unscored == (5,)
