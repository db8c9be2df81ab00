"""Other seeds of a training's setting: the command, and the sentence at the gate's verdict."""

import json

import pytest
from typer.testing import CliRunner

from cli import main
from tracking.registry.registered_models import register

pytestmark = pytest.mark.usefixtures("here")
CELL = (10, 0.0)
KD = "kd_effnet_lite0_64"
OTHER = {"ema_decay": 0.5}  # another setting


@pytest.fixture
def reason_of(make_model):
    """A function that registers a model of a kernel distance and returns the gate's reason."""

    def register_one(seed: int, value: float, **changes) -> str:
        make_model(seed, {CELL: value}, **changes)
        return register().reason

    return register_one


def test_command_prints_rank_and_spread_of_the_newest_scores_of_one_setting(reason_of):
    reason_of(1, 0.20)
    assert "no scores of other seeds" in CliRunner().invoke(main.app, ["seeds"]).stdout
    reason_of(2, 0.90)
    reason_of(2, 0.24)
    reason_of(7, 0.90, train=OTHER)
    reason_of(4, 0.22, num_images=1000)
    reason_of(3, 0.22)
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


def test_gate_reports_the_spread_of_one_setting(reason_of):
    assert "setting" not in reason_of(1, 0.20)
    assert "setting" not in reason_of(1, 0.20, add=0.02), "each seed counts once"
    reason_of(5, 0.30, num_images=1000)  # another protocol does not count
    reason = reason_of(2, 0.24)
    assert "2 seeds" in reason
    assert f"{KD} 0.22 ± 0.028" in reason


@pytest.mark.slow
def test_gate_compares_two_settings_over_their_seeds(reason_of):
    for seed, value in ((1, 0.20), (2, 0.21), (3, 0.20)):
        reason_of(seed, value)
    assert "setting" not in reason_of(1, 0.30, train=OTHER), "one seed has no spread"
    reason = reason_of(2, 0.31, train=OTHER)
    assert f"{KD} 0.305 ± 0.0071 over 2 seeds" in reason
    assert f"{KD} 0.2033 ± 0.0058 over 3" in reason
    assert "no significant gap" not in reason
    assert "no significant gap" in reason_of(3, 0.16, train=OTHER)
