"""Objectives with a term of the whole batch, in addition to the error of L_simple."""

from torch import Tensor
from torch.nn.functional import pdist

from diffusion.process.losses import Noised, noised, squared_error, weighted_error
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.objective import Batch, Objective, TrainedNetwork
from diffusion.process.process_options import ContrastiveOptions, DispersiveOptions


class Contrastive(Objective):
    """The error minus λ times the error for the target of another image (Stoica et al. 2025, 2506.05350).

    The other image is the next one of the batch. With v the target that L_simple learns and v̄ the mean of all
    targets at this time, the network learns (v − λ·v̄)/(1 − λ).
    """

    options: ContrastiveOptions

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss`, the error `mse`, and `other`, the error for the other target."""
        made = noised(network, batch)
        other = made._replace(x_0=made.x_0.roll(1, 0), noise=made.noise.roll(1, 0))
        mse, wrong = squared_error(self.process, made), squared_error(self.process, other)
        error = mse - self.options.weight * wrong
        return {"loss": weighted_error(self.process, made, error), "mse": mse, "other": wrong}


class Dispersive(Objective):
    """The error plus λ·log mean exp(−‖z_i − z_j‖²/(D·τ)) of inner features z (Wang & He 2025, 2506.09027).

    The mean is over all pairs of the batch, D is the size of z. So the features of different images part.
    """

    options: DispersiveOptions

    def __init__(self, process: NoiseProcess, options: DispersiveOptions) -> None:
        super().__init__(process, options)
        self.features = (options.module,)

    def forward(self, network: TrainedNetwork, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return `loss`, the error `mse`, and `dispersion`, the logarithm for every image."""
        x_t = self.process.q_sample(batch.x_0, batch.t, batch.noise)
        output, features = network.with_features(x_t, batch.t, batch.condition)
        made = Noised(batch.x_0, x_t, batch.t, batch.noise, output)
        mse = squared_error(self.process, made)
        term = dispersion(features[self.options.module], self.options.temperature).expand_as(mse)
        loss = weighted_error(self.process, made, mse) + self.options.weight * term
        return {"loss": loss, "mse": mse, "dispersion": term}


def dispersion(features: Tensor, temperature: float) -> Tensor:
    """Return log mean exp(−‖z_i − z_j‖²/(D·τ)) over all pairs of features (B, …), also i = j."""
    z = features.flatten(1).float()
    near = (pdist(z).square() / -(z.shape[1] * temperature)).exp().sum()
    return ((2 * near + len(z)) / len(z) ** 2).log()
