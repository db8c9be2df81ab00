"""The samplers by name, as `sampler` says it in params.yaml, a card or a command. It loads no torch.

A further one is a module with a builder, SampleSettings → Sampler, and an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffusion.system.references import load_reference, reference_module

if TYPE_CHECKING:
    from diffusion.protocol.settings import SampleSettings
    from diffusion.sample.sampler import Sampler

CHANGES_RESULTS = False  # diffusion/code_digest.py

Noise = Literal["small", "large", "learned"]


def one_a_step(steps: int) -> int:
    """The evaluations of a sampler that asks the network once at each of its steps."""
    return steps


@dataclass(frozen=True)
class SamplerEntry:
    """`builder` makes a Sampler of the settings; `options` is the class of `sampler_options`.

    Each is a "module:name", loaded when it is needed, the options without torch. A `stochastic` sampler takes
    eta and, where that is not 0, noise, and moves a noisy step's mean where a prediction asks for it.
    `nfe` says how often S steps ask the network.
    """

    builder: str
    stochastic: bool = False
    nfe: Callable[[int], int] = one_a_step
    options: str = "diffusion.system.section:NoOptions"

    @property
    def module(self) -> str:
        """Where it is computed: what images of this sampler come from beside what all do."""
        return reference_module(self.builder)

    def checked_options(self, values: dict[str, Any]) -> dict[str, Any]:
        """The options with what was left out; pydantic's ValidationError for a wrong one."""
        checked: dict[str, Any] = load_reference(self.options).model_validate(values).model_dump(mode="json")
        return checked


SAMPLERS = {
    "ddim": SamplerEntry("diffusion.sample.ddim:build", stochastic=True),
    "dpm-solver++": SamplerEntry("diffusion.sample.dpm_solver:build"),
}


def build_sampler(settings: "SampleSettings") -> "Sampler":
    """The sampler that the settings name."""
    sampler: Sampler = load_reference(SAMPLERS[settings.sampler].builder)(settings)
    return sampler
