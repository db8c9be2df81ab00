"""The protocols of papers, by their names in `evaluate.protocol`.

A protocol changes nothing: it is compared with params.yaml, and differences are reported
(diffusion/protocol/paper_mismatches.py). This module loads no torch.
"""

from dataclasses import dataclass
from typing import Any

from diffusion.system.registry import Registry

IMAGENET_64 = ("imagenet64", "imagenet")
CIFAR = ("cifar10",)


@dataclass(frozen=True)
class PaperField:
    """The `values` that a paper allows for a field of params.yaml, `section.key`, and their `source`.

    It applies to the data sets named in `data`, to all without names. Every entry of a list in params.yaml
    must be one of the values, for a file its name, for options those that differ from their defaults. A field
    of `sample` that the sweep varies is read there.
    """

    field: str
    values: tuple[Any, ...]
    source: str
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """A paper's protocol: its `states`, and `remarks` that no field of params.yaml expresses."""

    paper: str
    states: tuple[PaperField, ...]
    remarks: tuple[str, ...] = ()


def _fid(where: str) -> tuple[PaperField, ...]:
    """Return the common fields: FID of 50,000 unguided images against the training set."""
    return (
        PaperField("sample.num_images", (50_000,), where),
        PaperField("evaluate.extractor", ("inception-v3-compat",), where),
        PaperField("evaluate.reference", ("train",), where),
        PaperField("evaluate.reference_images", (None,), where),
        PaperField("data.channels", (None, 3), where),
        PaperField("sample.guidance", (0.0,), where),
        PaperField("sample.classifier", (None,), where),
    )


_PAPERS = {
    "adm": Protocol(
        "ADM (Dhariwal & Nichol 2021, 2105.05233): ImageNet at 64×64, unguided",
        (
            *_fid("sec. 2.2, and evaluations/README.md of its code"),
            PaperField("data.name", IMAGENET_64, "table 4"),
            PaperField("data.image_size", (None, 64), "table 4"),
            PaperField("model.class_cond", (True,), "README.md of its code"),
            PaperField("process.timesteps", (1000,), "README.md of its code"),
            PaperField("process.schedule", ("cosine",), "README.md of its code"),
            PaperField("process.variance", ("learned",), "README.md of its code"),
            PaperField("process.loss", ("hybrid",), "gaussian_diffusion.py of its code"),
            PaperField("process.prediction", ("eps",), "gaussian_diffusion.py of its code"),
            PaperField("process.weighting", ("none",), "gaussian_diffusion.py of its code"),
            PaperField("process.t_sampler", ("uniform",), "resample.py of its code"),
            PaperField("process.stratified", (None, False), "resample.py of its code"),
            PaperField("process.zero_terminal_snr", (None, False), "gaussian_diffusion.py of its code"),
            PaperField("sample.sampler", ("ddim",), "sec. 2"),
            PaperField("sample.noise", ("learned",), "README.md of its code"),
            PaperField("sample.spacing", ("uniform",), "respace.py of its code"),
            PaperField("sample.clip", (True,), "image_sample.py of its code"),
            PaperField("sample.classes", ("balanced",), "image_sample.py of its code, which draws labels"),
            PaperField("sweep.steps", (250,), "table 4, and README.md of its code"),
            PaperField("sweep.eta", (1.0,), "README.md of its code"),
            PaperField("evaluate.prc_images", (10_000,), "evaluations/README.md of its code"),
            PaperField("evaluate.prc_samples", (50_000,), "evaluations/README.md of its code"),
            PaperField("evaluate.statistics", ("VIRTUAL_imagenet64_labeled.npz",), "evaluations/README.md"),
        ),
        (
            "the paper draws each label uniformly at random; balanced labels have every class equally often",
            "its 25 steps of DDIM, for larger images, are sample.noise small, η = 0 and spacing adm-stride",
        ),
    ),
    "edm": Protocol(
        "EDM (Karras et al. 2022, 2206.00364): CIFAR-10 and ImageNet at 64×64",
        (
            *_fid("sec. 3, and README.md of its code"),
            PaperField("data.name", (*CIFAR, *IMAGENET_64), "sec. 3"),
            PaperField("data.image_size", (None, 32), "sec. 3", CIFAR),
            PaperField("data.image_size", (None, 64), "sec. 3", IMAGENET_64),
            PaperField("model.class_cond", (True,), "README.md of its code", IMAGENET_64),
            PaperField("process.schedule", ("edm",), "table 1: σ(t) = t, s(t) = 1"),
            PaperField("process.prediction", ("edm",), "table 1: c_skip, c_out, c_in"),
            PaperField("process.sigma_data", (0.5,), "table 1"),
            PaperField("process.loss", ("simple",), "eq. 8"),
            PaperField("process.weighting", ("edm",), "table 1: λ(σ)"),
            PaperField("process.t_sampler", ("log-normal",), "table 1: ln σ ~ N(P_mean, P_std²)"),
            PaperField("process.t_sampler_options", ({}, None), "table 1: P_mean = −1.2, P_std = 1.2"),
            PaperField("sample.sampler", ("heun",), "alg. 1, and alg. 2 with churn"),
            PaperField("sample.sampler_options", ({}, None), "README.md of its code: no churn", CIFAR),
            PaperField(
                "sample.sampler_options",
                ({"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},),
                "table 5, and README.md of its code",
                IMAGENET_64,
            ),
            PaperField("sample.spacing", ("karras",), "eq. 5: ρ = 7, σ from 80 to 0.002"),
            PaperField("sample.spacing_options", ({}, None), "table 1: ρ, σ_min, σ_max"),
            PaperField("sample.clip", (False,), "generate.py of its code"),
            PaperField("sample.classes", ("balanced",), "generate.py of its code, which draws labels"),
            PaperField("sweep.steps", (18,), "README.md of its code: 35 evaluations", CIFAR),
            PaperField("sweep.eta", (0.0,), "alg. 1 and 2"),
            PaperField("sweep.steps", (256,), "README.md of its code: 511 evaluations", IMAGENET_64),
            PaperField("evaluate.statistics", ("cifar10-32x32.npz",), "README.md of its code", CIFAR),
            PaperField("evaluate.statistics", ("imagenet-64x64.npz",), "README.md of its code", IMAGENET_64),
        ),
        (
            "each figure is the least of three, of images with other seeds; a score here is of one",
            "the paper draws each label uniformly at random; balanced labels have every class equally often",
        ),
    ),
    "ddim": Protocol(
        "DDIM (Song, Meng & Ermon 2021, 2010.02502): CIFAR-10 by steps and η",
        (
            *_fid("of DDPM, the network used: 2006.11239, sec. 4.1 and app. B"),
            PaperField("data.name", CIFAR, "table 1"),
            PaperField("data.image_size", (None, 32), "sec. 5"),
            PaperField("model.class_cond", (False,), "of DDPM: 2006.11239, table 1"),
            PaperField("process.timesteps", (1000,), "sec. 5"),
            PaperField("process.schedule", ("linear",), "app. D.1, as DDPM"),
            PaperField("process.variance", ("small", "large"), "sec. 5"),
            PaperField("process.loss", ("simple",), "sec. 5: γ = 1"),
            PaperField("process.prediction", ("eps",), "eq. 5"),
            PaperField("process.weighting", ("none",), "sec. 5: γ = 1"),
            PaperField("process.t_sampler", ("uniform",), "of DDPM: 2006.11239, alg. 1"),
            PaperField("process.stratified", (None, False), "of DDPM: 2006.11239, alg. 1"),
            PaperField("process.zero_terminal_snr", (None, False), "app. D.1, as DDPM"),
            PaperField("sample.sampler", ("ddim",), "eq. 12"),
            PaperField("sample.noise", ("small",), "eq. 16"),
            PaperField("sample.spacing", ("ddim-quadratic",), "app. D.2, and runners/diffusion.py"),
            PaperField("sample.clip", (False,), "functions/denoising.py of its code"),
            PaperField("sweep.steps", (10, 20, 50, 100), "table 1"),
            PaperField("sweep.eta", (0.0, 0.2, 0.5, 1.0), "table 1"),
        ),
        (
            "the row σ̂ of table 1 is a run of its own: η = 1 with sample.noise large and sample.clip true",
            "the 1,000 steps of table 1 are a run of their own: all timesteps, sample.spacing ddim-uniform",
        ),
    ),
}
PROTOCOLS: Registry[Protocol] = Registry(
    "evaluate.protocol", "what a paper states of a run, field by field", _PAPERS
)
