"""The distributions of training's times by name, as in `process.t_sampler`. Loads no torch.

A further one is a TimeSampler (diffusion/process/time_samplers.py) and an entry here.
"""

from dataclasses import dataclass

from diffusion.system.references import BuilderEntry, OptionsEntry
from diffusion.system.registry import Registry

CHANGES_RESULTS = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class TimeDistribution(BuilderEntry, OptionsEntry):
    """`builder` makes a TimeSampler of a process and options; `options` is the class of `t_sampler_options`.

    Each is a "module:name", the options without torch. One that `is_unbiased` keeps the mean of the loss
    over uniform t, as loss vlb needs; one that `needs_bound` is for losses with the bound.
    """

    builder: str
    source: str
    options: str = "diffusion.system.section:NoOptions"
    needs_bound: bool = False
    is_unbiased: bool = False


TIME_DISTRIBUTIONS: Registry[TimeDistribution] = Registry(
    "process.t_sampler",
    "`NoiseProcess`, options → `TimeSampler` (`diffusion/process/time_samplers.py`)",
    {
        "uniform": TimeDistribution(
            "diffusion.process.time_samplers:Uniform", "DDPM, 2006.11239, alg. 1", is_unbiased=True
        ),
        "loss-aware": TimeDistribution(
            "diffusion.process.time_samplers:LossAware", "iDDPM, 2102.09672, eq. 18",
            needs_bound=True, is_unbiased=True,
        ),
        "logit-normal": TimeDistribution(
            "diffusion.process.time_samplers:LogitNormal", "Esser et al. 2024, 2403.03206, eq. 19",
            options="diffusion.process.process_options:NormalOptions",
        ),
        "log-normal": TimeDistribution(
            "diffusion.process.time_samplers:LogNormal", "EDM, 2206.00364, table 1",
            options="diffusion.process.process_options:LogNormalOptions",
        ),
    },
)  # fmt: skip
