"""Other seeds of a training's setting: the command, and the sentence at the gate's verdict."""

import json

import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.layout import SCORES
from diffusion.protocol.scores_document import read_scores
from tracking.registry.registered_models import register
from tracking.runs.scored_runs import log_scores

pytestmark = pytest.mark.usefixtures("here")
CELL = (10, 0.0)
KD = "kd_effnet_lite0_64"
OTHER = {"ema_decay": 0.5}  # another setting


@pytest.fixture
def evaluated(make_model):
    """A function that makes a model of a kernel distance and logs its scores; it returns the run's id."""

    def evaluate_one(seed: int, value: float, **changes) -> str:
        make_model(seed, {CELL: value}, **changes)
        return log_scores(read_scores(SCORES))

    return evaluate_one


@pytest.fixture
def registered(make_model):
    """A function that registers a model of a kernel distance; it returns the gate's reason."""

    def register_one(seed: int, value: float, train: dict | None = None, **card) -> str:
        make_model(seed, {CELL: value}, train=train, **card)
        return register().reason

    return register_one


def test_command_prints_rank_and_spread_of_the_newest_scores_of_one_setting(evaluated):
    evaluated(1, 0.20)
    assert "no scores of other seeds" in CliRunner().invoke(main.app, ["seeds"]).stdout
    evaluated(2, 0.90)
    evaluated(2, 0.24)
    evaluated(7, 0.90, train=OTHER)
    evaluated(4, 0.22, num_images=1000)
    evaluated(3, 0.22)
    done = CliRunner().invoke(main.app, ["seeds"])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith(KD))
    assert line.split() == [KD, "0.22", "0.22", "±", "0.02", "2", "of", "3", "1:", "0.2,", "2:", "0.24"]
    values = json.loads(CliRunner().invoke(main.app, ["seeds", "--json"]).stdout)
    assert (values["seed"], values["cell"], values["left_out"]) == (3, "steps10-eta0", {"4": ["num_images"]})
    kernel = next(one for one in values["scores"] if one["metric"] == KD)
    assert kernel == {
        "metric": KD,
        "values": {"1": 0.20, "2": 0.24, "3": 0.22},
        "mean": pytest.approx(0.22),
        "deviation": pytest.approx(0.02),
        "place": 2,
        "apart": False,
    }


def test_gate_reports_the_spread_of_one_setting(registered, make_model):
    assert "setting" not in registered(1, 0.20)
    make_model(1, {CELL: 0.20}, add=0.02)  # the same seed with another version of torch
    assert "setting" not in register().reason, "each seed counts once"
    registered(5, 0.30, num_images=1000)  # another protocol does not count
    reason = registered(2, 0.24)
    assert "2 seeds" in reason
    assert f"{KD} 0.22 ± 0.028" in reason


@pytest.mark.slow
def test_gate_compares_two_settings_over_their_seeds(registered):
    for seed, value in ((1, 0.20), (2, 0.21), (3, 0.20)):
        registered(seed, value)
    assert "setting" not in registered(1, 0.30, OTHER), "one seed has no spread"
    reason = registered(2, 0.31, OTHER)
    assert f"{KD} 0.305 ± 0.0071 over 2 seeds" in reason
    assert f"{KD} 0.2033 ± 0.0058 over 3" in reason
    assert "no significant gap" not in reason
    assert "no significant gap" in registered(3, 0.16, OTHER)
