"""The options of `diffctl sweep`, and its table of scores."""

import pytest

from cli.actions.model_sweep import _axes
from cli.actions.score_tables import show_sweep_scores
from diffusion.protocol.sample_sections import SweepConfig
from flows.champion import _options
from tests.helpers.scores_document import document, with_space


@pytest.mark.parametrize("axis", [{}, {"guidance_interval": [None, [0.2, 5], [1e-05, 1e9]]}])
def test_options_of_the_flow_are_parsed_as_its_grid(axis):
    grid = SweepConfig(steps=[5, 10], eta=[0.0, 0.5], sampler=["ddim"], guidance=[0.0, 1.5], **axis)
    options = list(_options(grid, None))
    pairs = zip(*[iter(options)] * 2, strict=True)
    given = {flag.removeprefix("--").replace("-", "_"): text for flag, text in pairs}
    assert _axes(SweepConfig(steps=[1], eta=[1.0]), given) == grid


def test_table_has_columns_for_every_feature_space(capsys):
    show_sweep_scores(with_space(document({(5, 0.0): 0.4, (10, 0.0): 0.3})))
    heading, first, second, *_ = capsys.readouterr().out.splitlines()
    names = ["fd_effnet_lite0_64", "excess", "kd_effnet_lite0_64"]
    assert heading.split() == ["STEPS", "ETA", *names, "fd_effnet_lite0_96", "kd_effnet_lite0_96"]
    assert first.split() == ["5", "0", "400", "375", "0.4", "800", "0.8"]
    assert second.split() == ["10", "0", "300", "275", "0.3", "600", "0.6", "*"]
    show_sweep_scores(document({(10, 0.0): 0.3}))
    assert "96" not in capsys.readouterr().out
