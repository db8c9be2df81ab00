"""The registry of samplers, by their names in params.yaml, cards and commands. This module loads no torch.

A new one is an entry here and a module with a builder, SampleSettings → Sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffusion.system.references import BuilderEntry, OptionsEntry, load_reference
from diffusion.system.registry import Registry

if TYPE_CHECKING:
    from diffusion.protocol.settings import SampleSettings
    from diffusion.sample.sampler import Sampler

CHANGES_RESULTS = False  # diffusion/code_digest.py

Noise = Literal["small", "large", "learned"]


def one_per_step(steps: int) -> int:
    """Return the NFE of a sampler that calls the network once per step."""
    return steps


def two_per_step_but_last(steps: int) -> int:
    """Return the NFE of a sampler that calls the network twice per step, but once in the last."""
    return 2 * steps - 1


@dataclass(frozen=True)
class SamplerEntry(BuilderEntry, OptionsEntry):
    """`builder` makes a Sampler of the settings; `options` is the class of `sampler_options`.

    Each is a "module:name", loaded when it is needed, the options without torch. A sampler that `uses_eta`
    adds `noise` where eta is not 0, and applies the mean shift of a prediction at noisy steps. Another one
    adds noise where its `noise_option` of `sampler_options` is not 0. `nfe` returns the number of network
    calls in S steps.
    """

    builder: str
    uses_eta: bool = False
    nfe: Callable[[int], int] = one_per_step
    options: str = "diffusion.system.section:NoOptions"
    source: str = ""
    noise_option: str | None = None

    def adds_noise(self, settings: "SampleSettings") -> bool:
        """Return whether the steps of a sampler with these settings draw noise."""
        if self.uses_eta:
            return settings.eta > 0
        if self.noise_option is None:
            return False
        return bool(self.checked_options(settings.sampler_options)[self.noise_option])


_EDM = "Karras et al. 2022 (2206.00364), alg. 1 and 2"
_K_DIFFUSION = "github.com/crowsonkb/k-diffusion, sampling.py"

SAMPLERS: Registry[SamplerEntry] = Registry(
    "sample.sampler",
    "`SampleSettings` → `Sampler` (`diffusion/sample/sampler.py`)",
    {
        "ddim": SamplerEntry(
            "diffusion.sample.ddim:build", uses_eta=True, source="Song et al. 2020 (2010.02502), eq. 12"
        ),
        "euler": SamplerEntry(
            "diffusion.sample.euler:build_euler",
            options="diffusion.protocol.sampler_options:ChurnOptions",
            noise_option="s_churn",
            source=_EDM,
        ),
        "euler-ancestral": SamplerEntry(
            "diffusion.sample.euler:build_ancestral",
            options="diffusion.protocol.sampler_options:SDEOptions",
            noise_option="eta",
            source=_K_DIFFUSION,
        ),
        "heun": SamplerEntry(
            "diffusion.sample.euler:build_heun",
            nfe=two_per_step_but_last,
            options="diffusion.protocol.sampler_options:HeunOptions",
            noise_option="s_churn",
            source=_EDM,
        ),
        "dpm-solver++": SamplerEntry(
            "diffusion.sample.dpm_solver:build", source="Lu et al. 2022 (2211.01095), alg. 2"
        ),
        "dpm-solver++-2m-sde": SamplerEntry(
            "diffusion.sample.dpm_solver:build_2m_sde",
            options="diffusion.protocol.sampler_options:SDEOptions",
            noise_option="eta",
            source=_K_DIFFUSION,
        ),
        "dpm-solver++-3m-sde": SamplerEntry(
            "diffusion.sample.dpm_solver:build_3m_sde",
            options="diffusion.protocol.sampler_options:SDEOptions",
            noise_option="eta",
            source=_K_DIFFUSION,
        ),
        "unipc": SamplerEntry(
            "diffusion.sample.unipc:build",
            options="diffusion.protocol.sampler_options:UniPCOptions",
            source="Zhao et al. 2023 (2302.04867), alg. 1 and 2",
        ),
        "ipndm": SamplerEntry(
            "diffusion.sample.ipndm:build",
            options="diffusion.protocol.sampler_options:IPNDMOptions",
            source="Zhang & Chen 2022 (2204.13902)",
        ),
    },
)


def build_sampler(settings: "SampleSettings") -> "Sampler":
    """Return the sampler that the settings name."""
    sampler: Sampler = load_reference(SAMPLERS[settings.sampler].builder)(settings)
    return sampler
