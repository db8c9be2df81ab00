"""Samplers reach the same points as k-diffusion, diff-sampler and UniPC (tests/golden/NOTICE.md)."""

import numpy as np
import pytest
import torch

from diffusion.analysis.mixture import MixtureDenoiser
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.protocol.sampler_options import ChurnOptions
from diffusion.sample.dpm_solver import DPMSolverSDE
from diffusion.sample.euler import EulerAncestral, Heun
from diffusion.sample.ipndm import IPNDM
from diffusion.sample.unipc import UniPC
from tests.conftest import ROOT
from tests.helpers.trajectories import walk
from tests.sample.test_solvers import MIXTURE

CHURN = ChurnOptions(s_churn=2, s_noise=1.003)
SAMPLERS = {
    "k-diffusion euler": Heun(correct=False, clip=False),
    "k-diffusion euler churn": Heun(correct=False, churn=CHURN, clip=False),
    "k-diffusion heun": Heun(clip=False),
    "k-diffusion heun churn": Heun(churn=CHURN, clip=False),
    "k-diffusion euler_ancestral": EulerAncestral(0.7, 1.1, clip=False),
    "k-diffusion dpmpp_2m_sde 0.0": DPMSolverSDE(2, 0.0, clip=False),
    "k-diffusion dpmpp_2m_sde 0.7": DPMSolverSDE(2, 0.7, clip=False),
    "k-diffusion dpmpp_3m_sde 0.0": DPMSolverSDE(3, 0.0, clip=False),
    "k-diffusion dpmpp_3m_sde 0.7": DPMSolverSDE(3, 0.7, clip=False),
    "diff-sampler ipndm 2": IPNDM(2, clip=False),
    "diff-sampler ipndm 3": IPNDM(3, clip=False),
    "diff-sampler ipndm 4": IPNDM(4, clip=False),
    "unipc bh1 2": UniPC(2, "bh1", clip=False),
    "unipc bh1 3": UniPC(3, "bh1", clip=False),
    "unipc bh2 2": UniPC(2, "bh2", clip=False),
    "unipc bh2 3": UniPC(3, "bh2", clip=False),
}
EDM = build_process(ProcessConfig(schedule="edm", prediction="edm", sigma_data=0.5))
COSINE = build_process(ProcessConfig(prediction="velocity", variance="small", loss="simple"))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", [EDM, COSINE])
def test_ends_equal_those_of_the_public_code(name, process):
    """The same along the noise levels of any process: its frame is x/α."""
    with np.load(ROOT / "tests/golden/solvers.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in ("levels", "start", "draws", name)}
    grid = process.grid(process.times_at(stored["levels"]).tolist())
    start = float(grid.alpha[-1]) * stored["start"]
    draws = iter([start, *stored["draws"]])
    found = walk(
        MixtureDenoiser(MIXTURE, process), grid, lambda: next(draws).reshape(6, 2, 1, 1), SAMPLERS[name]
    )
    assert torch.allclose(found.flatten(1), stored[name], rtol=0, atol=1e-9)
