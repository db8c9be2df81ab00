"""The gate's verdict on a model, and what other seeds of its setting say beside it."""

import pytest

from tracking.registry import register

pytestmark = pytest.mark.usefixtures("here")
CELL = (10, 0.0)
OTHER = {"ema_decay": 0.5}


@pytest.fixture
def registered(make_model):
    """Register a model of a seed with that kernel distance; returns the gate's reason."""

    def register_one(seed: int, value: float, train: dict | None = None, **card) -> str:
        make_model(seed, {CELL: value}, train=train, **card)
        return register().reason

    return register_one


def test_of_one_setting_the_spread_of_its_seeds_is_told(registered):
    assert "setting" not in registered(1, 0.20)
    reason = registered(2, 0.24)
    assert "both are of one setting, of which 2 seeds have kd_effnet_lite0_64 0.22 ± 0.028" in reason
    assert "3 seeds have kd_effnet_lite0_64 0.22 ± 0.02" in registered(3, 0.22)


@pytest.mark.slow
def test_two_settings_are_held_against_each_other_over_their_seeds(registered):
    for seed, value in ((1, 0.20), (2, 0.21), (3, 0.20)):
        registered(seed, value)
    assert "setting" not in registered(1, 0.30, OTHER)  # a single seed says nothing of a setting
    reason = registered(2, 0.31, OTHER)
    assert "its setting has kd_effnet_lite0_64 0.305 ± 0.0071 over 2 seeds" in reason
    assert "the champion's kd_effnet_lite0_64 0.2033 ± 0.0058 over 3, told apart" in reason
    assert "not told apart" in registered(3, 0.16, OTHER)


def test_scores_by_another_protocol_do_not_count(registered):
    registered(1, 0.20)
    registered(2, 0.30, num_images=1000)
    assert "2 seeds" in registered(3, 0.22)


def test_the_same_seed_counts_once(registered, make_model):
    registered(1, 0.20)
    make_model(1, {CELL: 0.24}, add=0.02)  # as by another torch
    assert "setting" not in register().reason
