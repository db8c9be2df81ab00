"""DDNM's projection around the denoiser, for every sampler (Wang et al. 2022, 2212.00490, eq. 10)."""

from diffusion.edit.method import corrected, operator_of
from diffusion.edit.operators import Measurement
from diffusion.process.denoiser import Prediction, time_tensor
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.guidance_rules import GUIDANCE_RULES
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampler import DenoiserCall, Sampler, build_sampler
from diffusion.system.errors import UsageError
from diffusion.system.section import NoOptions


def build(
    settings: SampleSettings, options: NoOptions, measurement: Measurement, process: NoiseProcess
) -> Sampler:
    """Return the settings' sampler with x̂_0 ← A⁺y + (I − A⁺A)·x̂_0, and ε recomputed from it.

    x̂_0 is clipped before the projection, and not after it, so that the result has the measurement y.
    UsageError for a guidance rule whose ε is not that of x̂_0.
    """
    if GUIDANCE_RULES[settings.rule].keeps_eps:
        raise UsageError(
            f"method projection recomputes ε, which guidance_rule {settings.rule} keeps: use method ddnm, or "
            "another rule"
        )
    operator, y = operator_of(measurement), measurement.y

    def correct(call: DenoiserCall, prediction: Prediction) -> Prediction:
        alpha, sigma = map(float, process.alpha_sigma(time_tensor(call.t)))
        x0_hat = prediction.x0.clamp(-1, 1) if settings.clip else prediction.x0
        x0_hat = operator.project(x0_hat, y)
        return prediction._replace(x0=x0_hat, eps=(call.x - alpha * x0_hat) / sigma)

    return corrected(build_sampler(settings.model_copy(update={"clip": False})), correct)
