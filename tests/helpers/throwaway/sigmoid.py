"""The weight sigmoid(shift − log SNR) of the error of ε (Kingma & Gao 2023, 2303.00848)."""

import math

from torch import Tensor

from diffusion.system.section import Section


class Options(Section):
    """At the log SNR `shift` the weight of ε's error is half of its maximum."""

    shift: float = 2.0


def sigmoid(alpha: Tensor, sigma: Tensor, sigma_data: float, options: Options) -> Tensor:
    """1/(σ²/α² + e^−shift), which is SNR times the weight of ε's error."""
    return 1 / ((sigma / alpha) ** 2 + math.exp(-options.shift))
