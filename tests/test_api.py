"""`diffusion.api`: the program in docs/library.md, and small models with a known answer."""

import re
from typing import Any

import pytest
import torch

from diffusion.api import PointNetwork, ProcessConfig, SampleSettings, build_process, fit, sample
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_registry import FlowConfig
from diffusion.system.errors import UsageError
from tests.conftest import ROOT
from tests.helpers.no_sync_tensors import no_float64

(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/library.md").read_text(), re.M | re.S)
PROCESS = build_process(ProcessConfig(timesteps=50, variance="small", loss="simple", prediction="velocity"))
FLOW = build_process(FlowConfig(schedule="flow"))


def test_classes_are_learned_and_image_i_depends_on_its_index_alone() -> None:
    labels = torch.arange(400) % 2
    points = torch.where(labels == 1, 0.7, -0.7)[:, None, None, None] + torch.zeros(400, 2, 1, 1)
    torch.manual_seed(0)
    network = PointNetwork(timesteps=50, classes=3, width=64)
    options = {"steps": 300, "lr": 0.01, "ema_decay": 0.97, "batch_size": 64, "null_label": 2}
    model = fit(network, PROCESS, points, labels, **options)
    settings, wanted = SampleSettings(steps=10, guidance=0.5), torch.tensor([0, 1, 1, 0])
    made = sample(model, PROCESS, 4, (2, 1, 1), settings, wanted, null_label=2)
    assert torch.allclose(made.mean(dim=(1, 2, 3)), 1.4 * wanted - 0.7, atol=0.15)
    first = sample(model, PROCESS, 2, (2, 1, 1), settings, wanted[:2], null_label=2)
    assert torch.allclose(made[:2], first, atol=1e-5)
    with pytest.raises(UsageError, match="guidance needs"):
        sample(model, PROCESS, 4, (2, 1, 1), settings, wanted)


def test_continuous_process_is_learned() -> None:
    points = torch.tensor([0.7, -0.7])[:, None, None, None].repeat(200, 2, 1, 1)
    torch.manual_seed(0)
    model = fit(PointNetwork(width=64), FLOW, points, steps=300, lr=0.01, ema_decay=0.97)
    made = sample(model, FLOW, 40, (2, 1, 1), SampleSettings(sampler="heun", steps=20))
    assert (made.abs() - 0.7).abs().median() < 0.1
    assert 10 < (made[:, 0] > 0).sum() < 30


@pytest.mark.parametrize("process", [PROCESS, FLOW], ids=["linear", "flow"])
def test_training_creates_no_float64_on_a_device_without_it(process: NoiseProcess) -> None:
    with no_float64() as device:
        fit(PointNetwork(width=8).to(device), process, torch.zeros(4, 2, 1, 1), steps=1)


@pytest.mark.slow
def test_program_in_the_docs_samples_digits_of_their_classes() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(PROGRAM, names)
    digits, made = names["digits"], 8 * (names["made"].flatten(1) + 1)
    found = KNeighborsClassifier(3).fit(digits.data, digits.target).predict(made.numpy())
    assert (found == names["wanted"].numpy()).mean() > 0.8
