"""An objective with all that one may have: own parameters with an average, and an inner output."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.process.loss_registry import OBJECTIVES, ObjectiveEntry
from diffusion.process.losses import noised, squared_error
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.objective import Batch, Objective, TrainedNetwork

ENTRY = ObjectiveEntry("tests.helpers.objectives:Learned", "a test")
LEARNED: dict[str, Any] = {"process": {"variance": "small", "loss": "learned"}}


class Learned(Objective):
    """error/e^u + u + the size of the middle's output times a learned number."""

    features = ("middle",)
    is_averaged = True

    def __init__(self, process: NoiseProcess, options: Any = None) -> None:
        super().__init__(process, options)
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        mse = squared_error(self.process, noised(network, batch))
        x_t = self.process.q_sample(batch.x_0, batch.t, batch.noise)
        _, features = network.with_features(x_t, batch.t, batch.condition)
        size = features["middle"].float().square().flatten(1).mean(1)
        u, scale = self.log_variance
        loss = mse / u.exp() + u + scale.square() * size + 0.01 * size
        return {"loss": loss, "mse": mse, "size": size}


def register(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Add the entry `learned` for a test."""
    monkeypatch.setitem(OBJECTIVES.data, "learned", ObjectiveEntry(**{**vars(ENTRY), **changes}))
