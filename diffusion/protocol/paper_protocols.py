"""The protocols of papers, by their names in `evaluate.protocol`.

A protocol changes nothing: it is compared with params.yaml, and differences are reported. This module loads
no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusion.system.registry import Registry

if TYPE_CHECKING:
    from diffusion.protocol.scores_document import ScoresDocument


ANY_DATA: tuple[str, ...] = ()
IMAGENET_64 = ("imagenet64", "imagenet")
CIFAR = ("cifar10",)


@dataclass(frozen=True)
class PaperField:
    """The `values` that a paper allows for a field of params.yaml, `section.key`, and their `source`.

    It applies to the data sets named in `data`, to all without names. Every entry of a list in params.yaml
    must be one of the values, for a file its name. A field of `sample` that the sweep varies is read there.
    """

    field: str
    values: tuple[Any, ...]
    source: str
    data: tuple[str, ...] = ANY_DATA


@dataclass(frozen=True)
class Protocol:
    """A paper's protocol: its `states`, and `remarks` that no field of params.yaml expresses."""

    paper: str
    states: tuple[PaperField, ...]
    remarks: tuple[str, ...] = ()


class Mismatch(NamedTuple):
    """A field in which a run differs from a protocol: the values of the paper and the run, and the source."""

    field: str
    paper: str
    here: str
    source: str

    def __str__(self) -> str:
        return f"{self.field} is {self.here}, and the paper has {self.paper} ({self.source})"


def _fid(where: str) -> tuple[PaperField, ...]:
    """Return the common fields: FID of 50,000 images against the training set."""
    return (
        PaperField("sample.num_images", (50_000,), where),
        PaperField("evaluate.extractor", ("inception-v3-compat",), where),
        PaperField("evaluate.reference", ("train",), where),
        PaperField("sample.guidance", (0.0,), where),
    )


_PAPERS = {
    "adm": Protocol(
        "ADM (Dhariwal & Nichol 2021, 2105.05233): ImageNet at 64×64, unguided",
        (
            *_fid("sec. 2.2, and evaluations/README.md of its code"),
            PaperField("data.name", IMAGENET_64, "table 4"),
            PaperField("data.image_size", (None, 64), "table 4"),
            PaperField("process.timesteps", (1000,), "README.md of its code"),
            PaperField("process.schedule", ("cosine",), "README.md of its code"),
            PaperField("process.variance", ("learned",), "README.md of its code"),
            PaperField("process.loss", ("hybrid",), "gaussian_diffusion.py of its code"),
            PaperField("process.prediction", ("eps",), "gaussian_diffusion.py of its code"),
            PaperField("process.weighting", ("none",), "gaussian_diffusion.py of its code"),
            PaperField("sample.sampler", ("ddim",), "sec. 2"),
            PaperField("sample.noise", ("learned",), "README.md of its code"),
            PaperField("sample.spacing", ("uniform",), "respace.py of its code"),
            PaperField("sample.clip", (True,), "image_sample.py of its code"),
            PaperField("sample.classes", ("balanced",), "image_sample.py of its code, which draws labels"),
            PaperField("sweep.steps", (250,), "table 4, and README.md of its code"),
            PaperField("sweep.eta", (1.0,), "README.md of its code"),
            PaperField("evaluate.prc_images", (10_000,), "evaluations/README.md of its code"),
            PaperField("evaluate.prc_samples", (50_000,), "evaluations/README.md of its code"),
            PaperField(
                "evaluate.statistics",
                ("VIRTUAL_imagenet64_labeled.npz",),
                "evaluations/README.md of its code",
            ),
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
            PaperField("data.image_size", (None, 64), "sec. 3", IMAGENET_64),
            PaperField("process.schedule", ("edm",), "table 1: σ(t) = t, s(t) = 1"),
            PaperField("process.prediction", ("edm",), "table 1: c_skip, c_out, c_in"),
            PaperField("process.sigma_data", (0.5,), "table 1"),
            PaperField("process.loss", ("simple",), "eq. 8"),
            PaperField("process.weighting", ("edm",), "table 1: λ(σ)"),
            PaperField("process.t_sampler", ("log-normal",), "table 1: ln σ ~ N(P_mean, P_std²)"),
            PaperField("process.t_sampler_options", ({}, None), "table 1: P_mean = −1.2, P_std = 1.2"),
            PaperField("sample.sampler", ("heun",), "alg. 1, and alg. 2 with churn"),
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
            PaperField("process.timesteps", (1000,), "sec. 5"),
            PaperField("process.schedule", ("linear",), "app. D.1, as DDPM"),
            PaperField("process.variance", ("small", "large"), "sec. 5"),
            PaperField("process.loss", ("simple",), "sec. 5: γ = 1"),
            PaperField("process.prediction", ("eps",), "eq. 5"),
            PaperField("process.weighting", ("none",), "sec. 5: γ = 1"),
            PaperField("sample.sampler", ("ddim",), "eq. 12"),
            PaperField("sample.noise", ("small",), "eq. 16"),
            PaperField(
                "sample.spacing", ("ddim-quadratic",), "app. D.2, and runners/diffusion.py of its code"
            ),
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


def mismatches(name: str, sections: Mapping[str, Any]) -> list[Mismatch]:
    """Return where a run differs from a protocol; `sections` are those of params.yaml as plain values."""
    data = sections["data"]["name"]
    found = []
    for stated in PROTOCOLS[name].states:
        if stated.data and data not in stated.data:
            continue
        others = [value for value in _values(stated.field, sections) if value not in stated.values]
        if others:
            paper = " or ".join(_text(value) for value in stated.values if value is not None)
            found.append(Mismatch(stated.field, paper, ", ".join(map(_text, others)), stated.source))
    return found


def _values(field: str, sections: Mapping[str, Any]) -> list[Any]:
    """Return what a run has under a field: one value, or those that its sweep lists."""
    section, key = field.split(".")
    listed = sections["sweep"].get(key) if section == "sample" else None
    value = listed or sections[section].get(key)
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [_comparable(key, one) for one in values]


def _comparable(key: str, value: Any) -> Any:
    """Return the name of a file, and options as a mapping, which are JSON in cards."""
    if isinstance(value, Mapping) and "file" in value:
        return PurePath(value["file"]).name
    if isinstance(value, str) and key.endswith("_options"):
        return json.loads(value)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:,}" if type(value) is int else str(value)


def score_mismatches(document: "ScoresDocument", name: str, process: Mapping[str, Any]) -> list[Mismatch]:
    """Return the fields in which scores differ from a protocol, by its name in PROTOCOLS.

    `process` is that section of the model, as plain values.
    """
    card = document.cells[document.best.cell].card
    statistics = card.get("statistics_name")
    of_cells = [stated.field.split(".") for stated in PROTOCOLS[name].states]
    sections = {
        "data": {"name": card["data"], "image_size": card.get("image_size")},
        "process": process,
        "sample": {},
        "sweep": {
            key: list(dict.fromkeys(cell.card.get(key) for cell in document.cells.values()))
            for section, key in of_cells
            if section in ("sample", "sweep")
        },
        "evaluate": {
            "extractor": document.extractor,
            "reference": document.reference.reference_split,
            "statistics": {"file": statistics} if statistics else None,
            "prc_images": card.get("prc_reference_images"),
            "prc_samples": card.get("prc_images"),
        },
    }
    return mismatches(name, sections)
