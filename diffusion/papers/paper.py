"""Figures published in papers, each with its protocol, as YAML files.

Those of PAPERS are shipped; users can write their own. A protocol uses the fields of a score's card, so that
it can be compared with one. Fields that the paper does not state are left out.
"""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from diffusion.images.store_meta import CardValue
from diffusion.protocol.card import SHARES, protocol_card
from diffusion.protocol.extractors import EXTRACTORS, ExtractorSpec
from diffusion.protocol.grid import settings_card
from diffusion.protocol.published_statistics import statistics_card
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError, printable
from diffusion.system.regular_files import read_regular_text
from diffusion.system.section import PositiveInt, Section, ShortText, brief, validate
from diffusion.system.yaml_text import YamlRefusal, parse_yaml

PAPERS = {
    "adm": "Dhariwal & Nichol 2021: ImageNet at 64×64, by FID, precision and recall",
    "ddim": "Song, Meng & Ermon 2021: CIFAR-10 by steps and η, by FID",
    "edm": "Karras et al. 2022: CIFAR-10 and ImageNet at 64×64, by FID",
}

MAX_BYTES = 1 << 20
FROM_SAMPLING = ("model_sha256", "ema", "precision", "sampling_torch", "classifier_scale", "timesteps")

Stated = Annotated[dict[ShortText, CardValue], Field(max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=300)]


class Figure(Section):
    """A published `value` of the score `metric`, its place in the paper, and its protocol.

    `protocol` extends the paper's. Reports on the data sets in `beside` show the figure, by default the one
    of its protocol.
    """

    name: Text
    where: Text
    metric: ShortText
    value: Annotated[float, Field(ge=-1e6, le=1e6)]
    protocol: Stated = Field(default_factory=dict)
    beside: Annotated[list[ShortText], Field(max_length=20)] | None = None

    @model_validator(mode="after")
    def _metric_is_a_score(self) -> Self:
        if self.metric not in known_scores():
            raise ValueError(f"metric: there is no score {brief(self.metric)}, such as fid")
        return self


class Paper(Section):
    """A paper, the common protocol of its figures, and the figures.

    Each figure is the minimum of `least_of` runs.
    """

    title: Text
    source: Text
    note: Annotated[str, Field(max_length=300)] = ""
    least_of: PositiveInt = 1
    protocol: Stated = Field(default_factory=dict)
    figures: Annotated[list[Figure], Field(min_length=1, max_length=500)]

    @model_validator(mode="after")
    def _protocols_are_of_cards(self) -> Self:
        for stated in (self.protocol, *(figure.protocol for figure in self.figures)):
            if unknown := sorted(stated.keys() - card_fields()):
                known = ", ".join(sorted(card_fields()))
                raise ValueError(
                    f"protocol.{brief(unknown[0], str)}: no card has that field, so nothing could agree with "
                    f"it; there are {known}"
                )
        return self

    def protocol_of(self, figure: Figure) -> dict[str, Any]:
        """Return the full protocol of a figure, by fields of a card."""
        return {**self.protocol, **figure.protocol}

    def beside(self, figure: Figure) -> list[str]:
        """Return the data sets with this figure in their report."""
        data = self.protocol_of(figure).get("data")
        return figure.beside or ([] if data is None else [str(data)])


def open_paper(name: str) -> Paper:
    """Open a shipped paper by name, or a file.

    UsageError if there is neither, and for a malformed file; DiffctlError for an unreadable file.
    """
    if name in PAPERS:
        return _shipped(name)
    path = Path(name)
    if not path.exists():
        raise UsageError(
            f"there is no paper {printable(name)}: give one of {', '.join(PAPERS)}, or a YAML file of figures"
        )
    return _parsed(read_regular_text(path, MAX_BYTES), printable(path))


def all_papers() -> Iterator[Paper]:
    """Yield the shipped papers."""
    return map(_shipped, PAPERS)


@cache
def _shipped(name: str) -> Paper:
    file = files("diffusion.papers") / f"{name}.yaml"
    return _parsed(file.read_text(encoding="utf-8"), file.name)


def _parsed(text: str, origin: str) -> Paper:
    try:
        values = parse_yaml(text)
    except YamlRefusal as refusal:
        raise UsageError(f"{origin} is not readable as YAML: {brief(refusal, str)}") from None
    return validate(Paper, values, f"{origin} holds no published figures")


@cache
def card_fields() -> frozenset[str]:
    """Return the fields of cards."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("name", "image_size", "extractor", "weights_sha256", "dtype"), ""
    )
    facts = dict.fromkeys(("name", "sha256", "source"), "")
    spec = next(iter(EXTRACTORS.values()))
    return frozenset(
        {
            *FROM_SAMPLING,
            *SampleSettings.model_fields,
            *settings_card(SampleSettings()),
            *protocol_card({}, 2, {**nothing, "reference_count": 2}, "", (2, 2)),
            *statistics_card({}, 2, facts, spec, ""),
        }
    )


@cache
def known_scores() -> frozenset[str]:
    """Return the names of all extractors' scores."""
    return frozenset(name for spec in EXTRACTORS.values() for name in _scores_of(spec))


def _scores_of(spec: ExtractorSpec) -> Iterator[str]:
    yield from (spec.distance, spec.limit, spec.published, spec.kernel_distance, *map(spec.named, SHARES))
    yield from (name for name in (spec.score, spec.gaussian_distance) if name)
