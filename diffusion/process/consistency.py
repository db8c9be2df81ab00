"""Consistency tuning (ECT: Geng et al. 2024, 2406.14548): x̂_0 becomes the end of the probability-flow ODE."""

import math

import torch
from torch import Tensor

from diffusion.process.denoiser import expand
from diffusion.process.objective import Batch, Objective, TrainedNetwork
from diffusion.process.process_options import ConsistencyOptions
from diffusion.system.devices import to_device
from diffusion.system.limits import MAX_NOISE_LEVEL

MIN_SHARE = 1e-4  # smallest q^−(a+1): at high levels float32 resolves x_t − x_r to about three digits


class Consistency(Objective):
    """The distance of x̂_0 from x̂_0 at a lower noise level r of the same image and noise (ECT, 2406.14548).

    With u = σ/α of t, the loss is w·(√(‖x̂_0(x_t) − x̂_0(x_r)‖² + c²) − c). No gradient flows through x_r, and
    x_0 is the target where r is below the process's lowest level. Both passes have the same dropout masks.
    The weight w is that of x̂_0 by `weighting`: `edm` is (u² + σ_data²)/(u·σ_data)², as in the authors' code
    for ImageNet-64; with `none` it is 1/(u − r), as for CIFAR-10.
    """

    options: ConsistencyOptions

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss`, and the mean squared distance `mse`."""
        level = self.process.noise_level(batch.t).clamp(max=MAX_NOISE_LEVEL)
        lower = self.lower_level(level, step)
        x0_hat = self._x0_hat(network, batch, batch.t)
        with torch.no_grad():
            target = self._x0_hat(network, batch, self.process.times_at(lower))
        difference = x0_hat - torch.where(expand(lower, x0_hat) > 0, target, batch.x_0)
        distance = torch.linalg.vector_norm(difference.flatten(1), dim=1)
        c = self.options.huber
        loss = torch.hypot(distance, torch.full_like(distance, c)) - c if c else distance
        weight = self.process.data_weight(batch.t)
        weight = 1 / (level - lower) if weight is None else weight
        loss = to_device(weight.to(loss.dtype), loss.device) * loss
        return {"loss": loss, "mse": distance.square() / difference[0].numel()}

    def lower_level(self, level: Tensor, step: int) -> Tensor:
        """Return r = u·(1 − q^−(a+1)·(1 + 8·sigmoid(−u))) of noise levels u (B,), 0 below the lowest level.

        The stage a is the number of full `stage_steps` before this step. It ends at the last one with
        q^−(a+1) of at least MIN_SHARE, or at 0 if there is none.
        """
        q, steps = self.options.q, self.options.stage_steps
        last = max(0, math.floor(math.log(1 / MIN_SHARE, q)) - 1)
        stage = min(step // steps, last) if steps else 0
        share = q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-level))
        lower = level * (1 - share)
        lowest = self.process.noise_level(torch.tensor(self.process.t_min, dtype=torch.float64))
        return torch.where(lower > lowest, lower, 0)

    def _x0_hat(self, network: TrainedNetwork, batch: Batch, t: Tensor) -> Tensor:
        x_t = self.process.q_sample(batch.x_0, t, batch.noise)
        return network(x_t, t, batch.condition).x0
