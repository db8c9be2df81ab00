"""Scores of a set of images and of a cell, with their errors and their card."""

import base64
import struct
import textwrap
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from diffusion.images.store_meta import CardValue
from diffusion.protocol.card import EXTRACTOR_FIELDS, GROUPS, STATISTICS_FIELDS, SUBSETS, differing_fields
from diffusion.protocol.extractors import EXTRACTORS, MAX_SPACES, ExtractorSpec
from diffusion.protocol.options import SamplingOption, fields_section
from diffusion.protocol.settings import AXES, OPTIONS
from diffusion.system.section import Section, ShortText, brief

MAX_SCORE = 1e15
ScoreNumber = Annotated[StrictInt | StrictFloat, Field(ge=-MAX_SCORE, le=MAX_SCORE)]


LINE = 100  # characters of a line in a document


def pack(errors: Iterable[float]) -> list[str]:
    """Return errors as lines of float32 in base64."""
    values = list(map(float, errors))
    return textwrap.wrap(base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode(), LINE)


def unpack(lines: Sequence[str]) -> tuple[float, ...]:
    """Return the errors in these lines; ValueError unless they are float32 in base64, at most MAX_SCORE."""
    data = base64.b64decode("".join(lines), validate=True)
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no float32 numbers")
    errors = struct.unpack(f"<{len(data) // 4}f", data)
    if not all(abs(error) <= MAX_SCORE for error in errors):  # a comparison with NaN is false
        raise ValueError("one of the numbers is too large or not finite")
    return errors


class ImageScores(Section):
    """The scores of one set of images by name, their card and, if known, scores by class.

    `errors` has, packed, the contributions of groups of images and random subsets to the error of both
    distances; it is empty if scores have no intervals. Every set has the same number of them, so that those
    of two sets correspond.
    """

    scores: dict[str, ScoreNumber]
    card: Annotated[dict[str, CardValue], Field(max_length=200)]
    errors: dict[str, list[str]] = Field(default_factory=dict)
    classes: dict[str, dict[str, ScoreNumber]] = Field(default_factory=dict)

    @property
    def spec(self) -> ExtractorSpec:
        """The extractor of the scores."""
        return EXTRACTORS[str(self.card["extractor"])]

    @property
    def num_images(self) -> int:
        """The number of scored images."""
        return int(self.card["num_images"] or 0)

    @model_validator(mode="after")
    def _check_card(self) -> Self:
        extractor, count = self.card.get("extractor"), self.card.get("num_images")
        if extractor not in EXTRACTORS:
            raise ValueError(f"card.extractor: there is no {brief(extractor)}")
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"card.num_images is {brief(count)}")
        return self

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        spec, has = self.spec, self.scores.keys()
        needed = {spec.distance, spec.kernel_distance}
        needed |= {f"{name.removesuffix('_low')}_high" for name in has if name.endswith("_low")}
        needed |= {"excess"} if "floor" in has else {"floor"} if "excess" in has else set()
        if spec.published in has and not isinstance(self.card.get("statistics_sha256"), str):
            raise ValueError(f"{spec.published} is against statistics, and card.statistics_sha256 names none")
        needed |= {"memorisation_std"} if "memorisation" in has else set()
        if missing := sorted(needed - has):
            raise ValueError(f"there is no score {missing[0]}")
        for name, scores in self.classes.items():
            if spec.distance not in scores:
                raise ValueError(f"class {brief(name)} has no score {spec.distance}")
        return self

    @model_validator(mode="after")
    def _check_errors(self) -> Self:
        sizes = {self.spec.distance: GROUPS, self.spec.kernel_distance: GROUPS + SUBSETS}
        if self.spec.published in self.scores:
            sizes[self.spec.published] = GROUPS
        for name, lines in self.errors.items():
            if name not in sizes:
                raise ValueError(f"errors has {brief(name)}: they are of {', '.join(sizes)} alone")
            try:
                count = len(unpack(lines))
            except ValueError as error:
                raise ValueError(f"errors.{name} cannot be unpacked: {error}") from None
            if count != sizes[name]:
                raise ValueError(f"errors.{name} holds {count} numbers, not {sizes[name]}")
        for name in sizes:
            if (name in self.errors) != (f"{name}_low" in self.scores):
                raise ValueError(f"{name} has one of its interval and its errors without the other")
        return self


def _axis_field(option: SamplingOption) -> tuple[Any, Any]:
    """Return the type and default of a cell's value on an axis."""
    stored = option.option.stored or (ShortText if option.option.choices else option.annotation)
    return (stored, ...) if option.option.axis == "required" else (stored | None, None)


_AxisValues: Any = fields_section("_AxisValues", Section, {name: _axis_field(OPTIONS[name]) for name in AXES})


class CellScores(ImageScores, _AxisValues):  # type: ignore[misc]
    """A cell's values on axes that vary, and scores; those of further extractors in `spaces` by name."""

    spaces: Annotated[dict[str, ImageScores], Field(max_length=MAX_SPACES)] = Field(default_factory=dict)

    @property
    def all_scores(self) -> dict[str, float]:
        """The scores of every extractor; those of further ones have its name."""
        further = {
            seen.spec.qualified(name): value
            for seen in self.spaces.values()
            for name, value in seen.scores.items()
        }
        return {**self.scores, **further}

    @property
    def axes(self) -> dict[str, Any]:
        """The cell's values by axis, as `Cell.axes`."""
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}

    @property
    def nfe(self) -> int:
        """How often the network saw an image, for one that was made."""
        return int(self.card["nfe"] or 0)

    @model_validator(mode="after")
    def _check_cell_card(self) -> Self:
        if not isinstance(self.card.get("data"), str):
            raise ValueError("card.data does not name the data")
        if type(self.card.get("nfe")) is not int or self.nfe < 1:
            raise ValueError(f"card.nfe is {brief(self.card.get('nfe'))}")
        return self

    @model_validator(mode="after")
    def _check_spaces(self) -> Self:
        for name, seen in self.spaces.items():
            if seen.card["extractor"] != name or name == self.card["extractor"]:
                raise ValueError(f"spaces has {brief(name)} with the scores of {seen.spec.name}")
            if wrong := differing_fields([self.card, seen.card], (*EXTRACTOR_FIELDS, *STATISTICS_FIELDS)):
                raise ValueError(f"spaces.{name}.card is of another protocol: {', '.join(wrong)} differs")
        return self
