"""`show steps`: the times equal those of the samplers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.show.step_spacing import steps

CONFIG = ProcessConfig(timesteps=50)


@given(st.integers(1, 50))
def test_times_equal_those_of_the_samplers(count: int) -> None:
    shown = steps(CONFIG, count)
    process = build_process(CONFIG)
    assert shown.spacings.keys() >= {name for name, entry in SPACINGS.items() if not entry.is_paper_grid}
    assert ("ddim-uniform" in shown.spacings) == (count > 1 and 50 % count == 0)
    assert shown.steps == count
    for name, spaced in shown.spacings.items():
        grid = sampling_grid(SampleSettings(spacing=name, steps=count), process)
        assert spaced.times == grid.times.tolist()
        at = grid.alphas_cumprod.numpy()
        assert spaced.log_snr == pytest.approx(np.log(at / (1 - at)), abs=1e-9)
        assert spaced.noise_level == pytest.approx(np.sqrt((1 - at) / at))
        assert spaced.largest_eta >= 1 or count == 1


def test_text_lists_every_time() -> None:
    assert "  " + " ".join(map(str, spaced_timesteps("quadratic", 7, 50))) in steps(CONFIG, 7).lines(100)
