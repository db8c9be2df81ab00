"""The grid that `diffctl sweep` is asked for, and that the flow of its name asks for."""

import pytest

from cli.commands.sweep import _axes
from diffusion.protocol.settings import SweepConfig
from flows.champion import _options


@pytest.mark.parametrize("axis", [{}, {"guidance_interval": [None, [0.2, 5], [1e-05, 1e9]]}])
def test_the_options_of_a_grid_are_read_back_as_the_grid(axis):
    grid = SweepConfig(steps=[5, 10], eta=[0.0, 0.5], sampler=["ddim"], guidance=[0.0, 1.5], **axis)
    options = list(_options(grid, None))
    given = {
        flag.removeprefix("--").replace("-", "_"): text
        for flag, text in zip(*[iter(options)] * 2, strict=True)
    }
    assert _axes(SweepConfig(steps=[1], eta=[1.0]), given) == grid
