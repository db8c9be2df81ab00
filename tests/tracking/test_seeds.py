"""Which other seeds of a setting MLflow knows, and the command that sets a training beside them."""

import json

import pytest
from typer.testing import CliRunner

from cli import main
from diffusion.layout import RUN, SCORES
from diffusion.protocol.scores import read_scores
from diffusion.system.errors import UsageError
from tests.helpers.scores_document import document
from tracking.registry import register
from tracking.runs import log_scores
from tracking.seeds import other_seeds
from tracking.store import connect

pytestmark = pytest.mark.usefixtures("here")
CELL = (10, 0.0)
KD = "kd_effnet_lite0_64"


def kept(found):
    return [(one.training.seed, next(iter(one.cells.values())).scores[KD]) for one in found]


@pytest.fixture
def evaluated(make_model):
    """Make a model of a seed with that kernel distance, and log its scores as the stage does."""

    def evaluate_one(seed: int, value: float, **changes) -> str:
        make_model(seed, {CELL: value}, **changes)
        return log_scores(RUN, read_scores(SCORES))

    return evaluate_one


def test_runs_are_known_by_their_setting_registered_or_not(evaluated):
    evaluated(1, 0.20)
    evaluated(2, 0.24)
    register()
    evaluated(7, 0.90, train={"ema_decay": 0.5})  # another setting
    evaluated(3, 0.22)
    assert sorted(kept(other_seeds(read_scores(SCORES)))) == [(1, 0.20), (2, 0.24)]
    evaluated(1, 0.21)
    assert sorted(kept(other_seeds(read_scores(SCORES)))) == [(2, 0.24), (3, 0.22)]


def test_a_version_counts_whose_run_does_not_say_its_setting(evaluated):
    run = evaluated(1, 0.20)
    register()
    connect().delete_tag(run, "diffctl.setting")  # as before runs said it
    evaluated(2, 0.24)
    assert kept(other_seeds(read_scores(SCORES))) == [(1, 0.20)]


def test_scores_of_no_training_have_no_other_seeds():
    with pytest.raises(UsageError, match="which training"):
        other_seeds(document())


def test_the_command_says_place_and_spread(evaluated):
    evaluated(1, 0.20)
    alone = CliRunner().invoke(main.app, ["seeds"])
    assert "no scores of another seed" in alone.stdout
    evaluated(2, 0.24)
    evaluated(4, 0.22, num_images=1000)
    evaluated(3, 0.22)
    done = CliRunner().invoke(main.app, ["seeds"])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith(KD))
    assert line.split() == [KD, "0.22", "0.22", "±", "0.02", "2", "of", "3", "1:", "0.2,", "2:", "0.24"]
    assert "seed 4 is left out: the cards differ in num_images" in done.stdout
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
