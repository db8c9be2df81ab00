"""CFG++: guidance with a step that adds the unconditional noise (Chung et al. 2025, 2406.08070, alg. 2)."""

from diffusion.process.denoiser import Prediction
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import ClassifierFree, GuidedCall
from diffusion.system.errors import UsageError


class CFGPlusPlus(ClassifierFree):
    """x̂_0(∅) + w·(x̂_0 − x̂_0(∅)), and the step of DDIM adds ε(∅) again.

    A w up to 1 interpolates between no class and the class; the paper has 0.6. w = 0 is no guidance: the
    conditional model. x̂_0 may be clipped, ε(∅) is not recomputed. UsageError for another sampler.
    """

    def __init__(self, settings: SampleSettings, process: NoiseProcess) -> None:
        super().__init__(settings, process)
        if settings.sampler != "ddim":
            raise UsageError(
                f"guidance_rule cfg++ is of sampler ddim, not {settings.sampler}: use another rule"
            )

    def combine(self, call: GuidedCall, better: Prediction, worse: Prediction) -> Prediction:
        """Return the x̂_0 between both, and ε(∅)."""
        return better._replace(x0=worse.x0 + call.weight * (better.x0 - worse.x0), eps=worse.eps)
