"""What a network learns by: the losses of DDPM and iDDPM, per image.

L_simple is a mean over pixels, L_vlb is in bits per dimension.
"""

from torch import Tensor

from diffusion.process.condition import Condition
from diffusion.process.denoiser_output import Network, split_output
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.posterior import log_variance
from diffusion.process.vlb import vlb_terms
from diffusion.system.device_transfer import to_device


def training_losses(
    network: Network, process: NoiseProcess, x_0: Tensor, t: Tensor, noise: Tensor, condition: Condition
) -> dict[str, Tensor]:
    """Per-image losses, each (B,): `loss`, and its parts `mse` and, with a learned variance, `vlb`.

    `t` (B,) are whole times. `mse` is of what the network predicts, not weighted. simple: L_simple, DDPM
    eq. 14. hybrid: L_simple + (T/1000)·L_vlb with the mean detached (iDDPM eq. 16). vlb: T·L_vlb, its mean
    over uniform t the bound.
    """
    config = process.config
    x_t = process.q_sample(x_0, t, noise)
    output = network(x_t, t.to(x_t.device), condition.labels).to(x_t.dtype)
    predicted, _ = split_output(output, x_t.shape[1])
    mse = (process.target(x_0, t, noise) - predicted).square().flatten(1).mean(1)
    simple = mse if config.weighting == "none" else _as(mse, process.loss_weight(t)) * mse
    if config.loss == "simple":
        return {"loss": simple, "mse": mse}
    prediction = process.read(output, x_t, t)
    x0_hat = prediction.x0 if config.loss == "vlb" else prediction.x0.detach()
    grid = process.full_grid(x_t.device)
    log_var = log_variance(grid, config.variance, prediction.variance_fraction, x_t, t)
    vlb = vlb_terms(grid, x_0, x_t, t, x0_hat, log_var)
    if config.loss == "vlb":
        return {"loss": process.timesteps * vlb, "mse": mse, "vlb": vlb}
    return {"loss": simple + process.timesteps / 1000 * vlb, "mse": mse, "vlb": vlb}


def _as(like: Tensor, values: Tensor) -> Tensor:
    """The values in `like`'s dtype first, for its device may not have theirs, and then there."""
    return to_device(values.to(like.dtype), like.device)
