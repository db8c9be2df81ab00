"""The objectives, error weights and time distributions of trainings by name. It loads no torch.

They are `process.loss`, `process.weighting` and `process.t_sampler`. A further objective is an Objective
(diffusion/process/objective.py), a further weight a function of (α, σ, σ_data, options), a further
distribution a TimeSampler (diffusion/process/time_samplers.py). Each has an entry here.
"""

from dataclasses import dataclass

from diffusion.system.registry import BuilderEntry, Registry, WithOptions

IN_CODE_DIGEST = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class LossWeight(BuilderEntry, WithOptions):
    """`builder` is the function, as a "module:name", `options` the class of `weighting_options`."""

    builder: str
    source: str
    options: str = "diffusion.system.section:NoOptions"
    uses_sigma_data: bool = False


@dataclass(frozen=True)
class ObjectiveEntry(BuilderEntry, WithOptions):
    """`builder` makes an Objective of a process and options; `options` is the class of `loss_options`.

    Each is a "module:name", the options without torch. `learned_variance` is whether it trains one, and needs
    it; `is_weighted` whether `weighting` applies. With `whole_batch` its losses depend on all images of a
    batch, so that micro-batches and several processes are refused. With `is_consistency` x̂_0 becomes the end
    of the flow, and previews are sampled in two steps. `extra_passes` is the number of forward passes without
    a gradient.
    """

    builder: str
    source: str
    options: str = "diffusion.system.section:NoOptions"
    learned_variance: bool = False
    is_weighted: bool = True
    whole_batch: bool = False
    is_consistency: bool = False
    extra_passes: int = 0


@dataclass(frozen=True)
class TimeDistribution(BuilderEntry, WithOptions):
    """`builder` makes a TimeSampler of a process and options; `options` is the class of `t_sampler_options`.

    Each is a "module:name", the options without torch. One that `is_unbiased` keeps the mean of the loss
    over uniform t, as loss vlb needs; one that `needs_bound` is for losses with the bound.
    """

    builder: str
    source: str
    options: str = "diffusion.system.section:NoOptions"
    needs_bound: bool = False
    is_unbiased: bool = False


LOSS_WEIGHTS: Registry[LossWeight] = Registry(
    "process.weighting",
    "(α, σ, σ_data, options) → the weight of x̂_0's squared error",
    {
        "none": LossWeight("diffusion.process.losses:none", "DDPM, 2006.11239, eq. 14"),
        "min-snr": LossWeight(
            "diffusion.process.losses:min_snr", "Hang et al. 2023, 2303.09556",
            options="diffusion.process.process_options:MinSNROptions",
        ),
        "min-snr-soft": LossWeight(
            "diffusion.process.losses:min_snr_soft",
            "Crowson et al. 2024, 2401.11605", uses_sigma_data=True,
        ),
        "edm": LossWeight(
            "diffusion.process.losses:edm", "EDM, 2206.00364, table 1", uses_sigma_data=True
        ),
        "velocity": LossWeight(
            "diffusion.process.losses:velocity", "JiT, 2511.13720",
            options="diffusion.process.process_options:VelocityOptions",
        ),
    },
)  # fmt: skip

OBJECTIVES: Registry[ObjectiveEntry] = Registry(
    "process.loss",
    "`NoiseProcess`, options → `Objective` (`diffusion/process/objective.py`)",
    {
        "simple": ObjectiveEntry("diffusion.process.losses:Simple", "DDPM, 2006.11239, eq. 14"),
        "hybrid": ObjectiveEntry(
            "diffusion.process.losses:Hybrid", "iDDPM, 2102.09672, eq. 16", learned_variance=True
        ),
        "vlb": ObjectiveEntry(
            "diffusion.process.losses:BoundLoss", "iDDPM, 2102.09672, eq. 4", learned_variance=True,
            is_weighted=False,
        ),
        "consistency": ObjectiveEntry(
            "diffusion.process.consistency:Consistency", "ECT, Geng et al. 2024, 2406.14548",
            options="diffusion.process.process_options:ConsistencyOptions", is_consistency=True,
            extra_passes=1,
        ),
        "contrastive": ObjectiveEntry(
            "diffusion.process.batch_terms:Contrastive", "Stoica et al. 2025, 2506.05350",
            options="diffusion.process.process_options:ContrastiveOptions", whole_batch=True,
        ),
        "dispersive": ObjectiveEntry(
            "diffusion.process.batch_terms:Dispersive", "Wang & He 2025, 2506.09027",
            options="diffusion.process.process_options:DispersiveOptions", whole_batch=True,
        ),
    },
)  # fmt: skip

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
