"""The section `process` of params.yaml, and the processes by name, its `schedule`. It loads no torch.

A further one is a module with a builder, ProcessConfig → Process, and an entry here.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from diffusion.process.loss_registry import LOSS_WEIGHTS, OBJECTIVES, TIME_DISTRIBUTIONS
from diffusion.process.parameterization import PREDICTIONS
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_STEPS
from diffusion.system.registry import BuilderEntry, Registry, check_name
from diffusion.system.section import NotBool, RegistrySection, own_options

IN_CODE_DIGEST = False  # diffusion/code_digest.py

REFERENCE_SIZE = 4096  # numbers of an image for which the shift auto is 1

SigmaData = Annotated[float, Field(gt=0, le=100), NotBool]
ProcessSigma = Annotated[float, Field(gt=0, le=1e4), NotBool]
PredictionName = Annotated[str, AfterValidator(partial(check_name, registry=PREDICTIONS))]
ObjectiveName = Annotated[str, AfterValidator(partial(check_name, registry=OBJECTIVES))]
LossWeightName = Annotated[str, AfterValidator(partial(check_name, registry=LOSS_WEIGHTS))]
TimeDistributionName = Annotated[str, AfterValidator(partial(check_name, registry=TIME_DISTRIBUTIONS))]

WITH_OPTIONS: Mapping[str, Registry[Any]]
WITH_OPTIONS = {"loss": OBJECTIVES, "t_sampler": TIME_DISTRIBUTIONS, "weighting": LOSS_WEIGHTS}
Variance = Literal["small", "large", "learned"]
"""Which variance a reverse step has: β̃ or β (DDPM sec. 3.2), or a predicted one (iDDPM eq. 15)."""


@dataclass(frozen=True)
class ProcessEntry(BuilderEntry):
    """`builder` makes a NoiseProcess of its section; `config` is that section's class, each a "module:name".

    A discrete process has a DiscreteConfig or a subclass, a continuous one a ContinuousConfig. `spacing` is
    the default spacing of sampling.
    """

    builder: str
    config: str = "diffusion.process.process_registry:DiscreteConfig"
    source: str = ""
    spacing: str = "uniform"


PROCESSES: Registry[ProcessEntry] = Registry(
    "process.schedule",
    "`ProcessConfig` → `NoiseProcess` (`diffusion/process/noise_process.py`)",
    {
        "linear": ProcessEntry("diffusion.process.discrete:linear", source="DDPM, 2006.11239, sec. 4"),
        "cosine": ProcessEntry("diffusion.process.discrete:cosine", source="iDDPM, 2102.09672, eq. 17"),
        "edm": ProcessEntry(
            "diffusion.process.continuous:EDM",
            "diffusion.process.process_registry:EDMConfig",
            "EDM, 2206.00364, table 1",
            spacing="karras",  # its time is σ, so that almost all even times are noise
        ),
        "flow": ProcessEntry(
            "diffusion.process.continuous:Flow",
            "diffusion.process.process_registry:FlowConfig",
            "Lipman et al. 2023, 2210.02747",
        ),
    },
)


class ProcessConfig(RegistrySection):
    """The noise process, the parameterization, and how it is trained.

    `schedule` is a name of PROCESSES; one with options of its own adds fields. `prediction` is a name of
    PREDICTIONS; samplers work with each. `sigma_data` is the standard deviation of pixels in [−1, 1] about
    their mean, which EDM's preconditioning and weights use; by default that of the training data.

    `loss` is a name of OBJECTIVES, `weighting` one of LOSS_WEIGHTS: how the squared error is weighted over
    time. `t_sampler` is a name of TIME_DISTRIBUTIONS, from which training draws t. `loss_options`,
    `weighting_options` and `t_sampler_options` are those that only this entry has. With `stratified` row i of
    B has the uniform number (u + i/B) mod 1, one u a step (VDM, 2107.00630), else one of its own.
    """

    CHOSEN_BY = "schedule"
    ENTRIES = PROCESSES

    schedule: Annotated[str, AfterValidator(partial(check_name, registry=PROCESSES))] = "cosine"
    loss: ObjectiveName = "simple"
    loss_options: dict[str, Any] = Field(default_factory=dict, exclude_if=operator.not_)
    t_sampler: TimeDistributionName = "uniform"
    t_sampler_options: dict[str, Any] = Field(default_factory=dict, exclude_if=operator.not_)
    stratified: bool = Field(default=False, exclude_if=operator.not_)
    prediction: PredictionName = "eps"
    weighting: LossWeightName = "none"
    weighting_options: dict[str, Any] = Field(default_factory=dict, exclude_if=operator.not_)
    sigma_data: SigmaData | None = Field(default=None, exclude_if=operator.not_)

    @property
    def learned_variance(self) -> bool:
        """Whether the network predicts a variance next to its prediction."""
        return False

    @property
    def max_steps(self) -> int:
        """The most steps of sampling: T of a discrete process."""
        return MAX_STEPS

    @property
    def uses_sigma_data(self) -> bool:
        """Whether anything depends on `sigma_data`."""
        return PREDICTIONS[self.prediction].uses_sigma_data or LOSS_WEIGHTS[self.weighting].uses_sigma_data

    def resolve(self, shape: tuple[int, int, int], pixel_std: float | None) -> Self:
        """Return the section with all that depends on data: images (C, H, W) and their pixels' deviation.

        UsageError if the deviation is needed and was not measured.
        """
        if self.sigma_data is not None or not self.uses_sigma_data:
            return self
        if pixel_std is None:
            raise UsageError("process.sigma_data was not measured: prepare the data again, or set it")
        return self.model_copy(update={"sigma_data": pixel_std})

    @field_validator("loss_options", "t_sampler_options", "weighting_options")
    @classmethod
    def _known_options(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Return the options that differ from their default; ValueError for an invalid one."""
        field = str(info.field_name).removesuffix("_options")
        name = info.data.get(field)
        if name is None:  # refused before
            return values
        return own_options(WITH_OPTIONS[field][name], values, f"{field}_options of {name}")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        objective, distribution = OBJECTIVES[self.loss], TIME_DISTRIBUTIONS[self.t_sampler]
        if objective.learned_variance and not self.learned_variance:
            raise ValueError(f"loss {self.loss} needs variance learned of a discrete process: use simple")
        if distribution.needs_bound and not self.learned_variance:
            raise ValueError(f"t_sampler {self.t_sampler} is for losses with the bound: vlb or hybrid")
        if not objective.is_weighted and self.weighting != "none":
            raise ValueError("weighting is for loss simple or hybrid: loss vlb has the bound's own weights")
        if not objective.is_weighted and not distribution.is_unbiased:
            raise ValueError(f"loss {self.loss} needs t_sampler uniform or loss-aware")
        return self


class ContinuousConfig(ProcessConfig):
    """A continuous process: without a variance of reverse steps, and without the bound."""


class EDMConfig(ContinuousConfig):
    """EDM (2206.00364): noise of σ from `sigma_min` to `sigma_max` is added to an image.

    By default as in the paper's table 1: preconditioned, weighted by 1/c_out², with ln σ ~ N(−1.2, 1.2²).
    """

    prediction: PredictionName = "edm"
    weighting: LossWeightName = "edm"
    t_sampler: TimeDistributionName = "log-normal"
    sigma_min: ProcessSigma = 0.002
    sigma_max: ProcessSigma = 80.0

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is not less than sigma_max {self.sigma_max:g}")
        return self


class FlowConfig(ContinuousConfig):
    """Flow matching on the straight line from image to noise (Lipman et al. 2023, 2210.02747).

    `shift` s moves times to s·t/(1 + (s − 1)·t), in training and sampling (Esser et al. 2024, 2403.03206,
    eq. 23): 1 leaves them. `auto` is √(CHW/4096) of the images, as in the code of SR-DiT (2512.12386).
    """

    prediction: PredictionName = "flow"
    shift: Annotated[float, Field(gt=0, le=100), NotBool] | Literal["auto"] = 1.0

    def resolve(self, shape: tuple[int, int, int], pixel_std: float | None) -> Self:
        """Return the section with all that depends on data."""
        resolved = super().resolve(shape, pixel_std)
        if self.shift == "auto":
            return resolved.model_copy(update={"shift": math.sqrt(math.prod(shape) / REFERENCE_SIZE)})
        return resolved


class DiscreteConfig(ProcessConfig):
    """A discrete process with T `timesteps`, as in DDPM and iDDPM.

    The `variance` of a reverse step is small, β̃, large, β, or learned between them (iDDPM eq. 15). The losses
    vlb and hybrid need a learned variance. With `zero_terminal_snr` √ᾱ is scaled and shifted so that nothing
    of the image is left at the last time (Lin et al. 2023, 2305.08891, alg. 1); ε alone cannot be predicted
    then.
    """

    timesteps: Annotated[int, Field(ge=2, le=MAX_STEPS), NotBool] = 1000
    variance: Variance = "learned"
    loss: ObjectiveName = "hybrid"
    zero_terminal_snr: bool = Field(default=False, exclude_if=operator.not_)

    @property
    def max_steps(self) -> int:
        """The most steps of sampling: T of a discrete process."""
        return self.timesteps

    @property
    def learned_variance(self) -> bool:
        """Whether the network predicts a variance next to its prediction."""
        return self.variance == "learned"

    @model_validator(mode="after")
    def _variance_is_trained(self) -> Self:
        if self.learned_variance and not OBJECTIVES[self.loss].learned_variance:
            raise ValueError(
                f"loss {self.loss} never trains a learned variance: use hybrid or variance small"
            )
        return self
