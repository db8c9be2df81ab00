"""The sections `process` of continuous processes, without torch."""

import math
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.process.loss_registry import LOSS_WEIGHTS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.process.process_registry import ContinuousConfig
from diffusion.process.time_distributions import TIME_DISTRIBUTIONS
from diffusion.system.references import check_name
from diffusion.system.section import NotBool

CHANGES_RESULTS = False  # diffusion/code_digest.py

REFERENCE_SIZE = 4096  # numbers of an image for which the shift auto is 1

NoiseLevel = Annotated[float, Field(gt=0, le=1e4), NotBool]


class EDMConfig(ContinuousConfig):
    """EDM (2206.00364): noise of σ from `sigma_min` to `sigma_max` is added to an image.

    By default as in the paper's table 1: preconditioned, weighted by 1/c_out², with ln σ ~ N(−1.2, 1.2²).
    """

    prediction: Annotated[str, AfterValidator(partial(check_name, registry=PREDICTIONS))] = "edm"
    weighting: Annotated[str, AfterValidator(partial(check_name, registry=LOSS_WEIGHTS))] = "edm"
    t_sampler: Annotated[str, AfterValidator(partial(check_name, registry=TIME_DISTRIBUTIONS))] = "log-normal"
    sigma_min: NoiseLevel = 0.002
    sigma_max: NoiseLevel = 80.0

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is not less than sigma_max {self.sigma_max:g}")
        return self


class FlowConfig(ContinuousConfig):
    """Flow matching on the straight line from image to noise (Lipman et al. 2023, 2210.02747).

    `shift` s moves times to s·t/(1 + (s − 1)·t), in training and sampling (Esser et al. 2024, 2403.03206,
    eq. 23): 1 leaves them. `auto` is √(CHW/4096) of the images (SR-DiT, 2512.12386).
    """

    prediction: Annotated[str, AfterValidator(partial(check_name, registry=PREDICTIONS))] = "flow"
    shift: Annotated[float, Field(gt=0, le=100), NotBool] | Literal["auto"] = 1.0

    def resolve(self, shape: tuple[int, int, int], pixel_std: float | None) -> Self:
        """Return the section with all that depends on data."""
        resolved = super().resolve(shape, pixel_std)
        if self.shift == "auto":
            return resolved.model_copy(update={"shift": math.sqrt(math.prod(shape) / REFERENCE_SIZE)})
        return resolved
