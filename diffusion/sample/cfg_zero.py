"""CFG-Zero*, guidance of flows (Fan et al. 2025, 2503.18886)."""

import torch

from diffusion.process.denoiser import Prediction, expand, time_tensor
from diffusion.process.noise_process import NoiseProcess
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.guidance import ClassifierFree, GuidedCall, along
from diffusion.sample.sampling_steps import call_times
from diffusion.system.errors import UsageError


class CFGZero(ClassifierFree):
    """Guidance of the velocity v = ε − x_0 from s·v(∅), and no velocity in the first calls.

    s = ⟨v, v(∅)⟩/‖v(∅)‖² of each image makes s·v(∅) the part of v along v(∅). The result is
    s·v(∅) + (1+w)·(v − s·v(∅)). UsageError for a process other than flow, if no call moves the image, or if
    an interval leaves out one of the first calls.
    """

    def __init__(self, settings: SampleSettings, process: NoiseProcess) -> None:
        super().__init__(settings, process)
        if process.config.schedule != "flow":
            raise UsageError(
                f"guidance_rule cfg-zero is of process.schedule flow, not {process.config.schedule}: "
                "use another rule"
            )
        zero, calls = self.options.zero_calls, SAMPLERS[settings.sampler].nfe(settings.steps)
        if zero >= calls:
            raise UsageError(
                f"guidance_rule_options.zero_calls {zero} of cfg-zero is not below the {calls} network calls "
                "of an image: lower it, or use more steps"
            )
        first = call_times(settings, process)[:zero] if settings.guidance_interval else []
        if not all(self.weight(t) for t in first):
            raise UsageError(
                "guidance_interval leaves out a call that guidance_rule_options.zero_calls "
                f"{zero} of cfg-zero is for: set zero_calls 0, or raise the upper end of the interval"
            )

    def combine(self, call: GuidedCall, better: Prediction, worse: Prediction) -> Prediction:
        """Return the guided prediction, of x_0 = x − t·v and ε = x + (1 − t)·v."""
        velocity, other = better.eps - better.x0, worse.eps - worse.x0
        if call.number < self.options.zero_calls:
            guided = torch.zeros_like(velocity)
        else:
            guided = (1 + call.weight) * velocity - call.weight * along(velocity, other)
        alpha, sigma = (expand(one, call.x) for one in self.process.alpha_sigma(time_tensor(call.t)))
        return better._replace(x0=call.x - sigma * guided, eps=call.x + alpha * guided)
