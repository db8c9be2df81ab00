"""The section `process` of params.yaml, and the processes by name, its `schedule`. It loads no torch.

A further one is a module with a builder, ProcessConfig → Process, and an entry here.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.process.parameterization import PREDICTIONS
from diffusion.system.limits import MAX_STEPS
from diffusion.system.references import check_name, load_reference, reference_module
from diffusion.system.registry import Registry
from diffusion.system.registry_section import RegistrySection
from diffusion.system.section import NotBool

if TYPE_CHECKING:
    from diffusion.process.noise_process import NoiseProcess

CHANGES_RESULTS = False  # diffusion/code_digest.py

Variance = Literal["small", "large", "learned"]
"""Which variance a reverse step has: β̃ or β (DDPM sec. 3.2), or a predicted one (iDDPM eq. 15)."""


@dataclass(frozen=True)
class ProcessEntry:
    """`builder` makes a Process of its section; `config` is that section's class, each a "module:name".

    A process with options of its own has a subclass of ProcessConfig.
    """

    builder: str
    config: str = "diffusion.process.process_registry:ProcessConfig"

    @property
    def module(self) -> str:
        """The module that computes this process."""
        return reference_module(self.builder)


PROCESSES: Registry[ProcessEntry] = Registry(
    "process.schedule",
    "`ProcessConfig` → `NoiseProcess` (`diffusion/process/noise_process.py`)",
    {
        "linear": ProcessEntry("diffusion.process.noise_schedules:linear"),
        "cosine": ProcessEntry("diffusion.process.noise_schedules:cosine"),
    },
)


def build_process(config: "ProcessConfig") -> "NoiseProcess":
    """Build the process of the section; UsageError if its prediction cannot be solved at every time."""
    process: NoiseProcess = load_reference(PROCESSES[config.schedule].builder)(config)
    process.check_solvable()
    return process


class ProcessConfig(RegistrySection):
    """The noise process, the parameterization and the loss.

    `timesteps` is T. `schedule` is a name of PROCESSES; one with options of its own adds fields here.
    `prediction` is a name of PREDICTIONS: ε (DDPM), x0, the velocity √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2022,
    2202.00512) or a flow's ε − x_0; samplers work with each. `weighting` min-snr balances the loss over
    timesteps (Hang et al. 2023, 2303.09556).

    The `variance` of a reverse step is small, β̃, large, β, or learned between them (iDDPM eq. 15). The `loss`
    simple is DDPM's eq. 14, vlb the bound, hybrid both (iDDPM eq. 16); the last two need a learned variance.
    `t_sampler` loss-aware draws timesteps in proportion to past losses (iDDPM eq. 18).
    """

    CHOSEN_BY = "schedule"
    ENTRIES = PROCESSES

    timesteps: Annotated[int, Field(ge=2, le=MAX_STEPS), NotBool] = 1000
    schedule: Annotated[str, AfterValidator(partial(check_name, registry=PROCESSES))] = "cosine"
    variance: Variance = "learned"
    loss: Literal["simple", "hybrid", "vlb"] = "hybrid"
    t_sampler: Literal["uniform", "loss-aware"] = "uniform"
    prediction: Annotated[str, AfterValidator(partial(check_name, registry=PREDICTIONS))] = "eps"
    weighting: Literal["none", "min-snr"] = "none"

    @model_validator(mode="after")
    def _loss_fits_variance(self) -> Self:
        if self.variance == "learned" and self.loss == "simple":
            raise ValueError(
                "loss simple never trains a learned variance: use hybrid, or variance small or large"
            )
        if self.variance != "learned" and self.loss != "simple":
            raise ValueError(
                f"loss {self.loss} needs variance learned; with a fixed variance use loss simple"
            )
        if self.t_sampler == "loss-aware" and self.loss == "simple":
            raise ValueError("t_sampler loss-aware is for losses with the bound: use loss vlb or hybrid")
        if self.weighting != "none" and self.loss == "vlb":
            raise ValueError("weighting is for loss simple or hybrid: loss vlb has the bound's own weights")
        return self
