"""The GPU benchmark: what it says without a GPU, and that its two loops run, on a CPU and small."""

import pytest
import torch

from benchmarks import gpu
from diffusion.model.unet_config import UNetSpec

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    gpu.main()
    assert capsys.readouterr().out == "There is no GPU here, so nothing was measured.\n"


@pytest.mark.slow
@pytest.mark.parametrize("profile", list(gpu.BATCHES))
def test_both_loops_run(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WARM", 1)
    monkeypatch.setattr(gpu, "TIMED", 3)
    artefact, store = gpu.described(profile, CPU, tmp_path, batch_size=2, compile=False, log_every=1)
    shape = {**artefact.network.model_dump(), "channels": 64, "num_res_blocks": 1}
    artefact = artefact.model_copy(update={"network": UNetSpec(**shape)})
    assert gpu.image_flop(artefact) > 1e9
    assert gpu.ours(artefact, store, CPU).rate > 0
    assert gpu.diffusers(artefact, store, CPU).rate > 0
