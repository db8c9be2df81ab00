"""The registry of samplers, by their names in params.yaml, cards and commands. This module loads no torch.

A new one is an entry here and a module with a builder, SampleSettings → Sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffusion.system.references import load_reference, reference_module
from diffusion.system.registry import Registry

if TYPE_CHECKING:
    from diffusion.protocol.settings import SampleSettings
    from diffusion.sample.sampler import Sampler

CHANGES_RESULTS = False  # diffusion/code_digest.py

Noise = Literal["small", "large", "learned"]


def one_per_step(steps: int) -> int:
    """Return the NFE of a sampler that calls the network once per step."""
    return steps


@dataclass(frozen=True)
class SamplerEntry:
    """`builder` makes a Sampler of the settings; `options` is the class of `sampler_options`.

    Each is a "module:name", loaded when it is needed, the options without torch. A `stochastic` sampler uses
    eta and, if that is not 0, noise, and applies the mean shift of a prediction at noisy steps. `nfe` returns
    the number of calls of the network in S steps.
    """

    builder: str
    stochastic: bool = False
    nfe: Callable[[int], int] = one_per_step
    options: str = "diffusion.system.section:NoOptions"

    @property
    def module(self) -> str:
        """The module that computes it."""
        return reference_module(self.builder)

    def checked_options(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the options with their defaults; pydantic's ValidationError for an invalid one."""
        checked: dict[str, Any] = load_reference(self.options).model_validate(values).model_dump(mode="json")
        return checked


SAMPLERS: Registry[SamplerEntry] = Registry(
    "sample.sampler",
    "`SampleSettings` → `Sampler` (`diffusion/sample/sampler.py`)",
    {
        "ddim": SamplerEntry("diffusion.sample.ddim:build", stochastic=True),
        "dpm-solver++": SamplerEntry("diffusion.sample.dpm_solver:build"),
    },
)


def build_sampler(settings: "SampleSettings") -> "Sampler":
    """Return the sampler that the settings name."""
    sampler: Sampler = load_reference(SAMPLERS[settings.sampler].builder)(settings)
    return sampler
