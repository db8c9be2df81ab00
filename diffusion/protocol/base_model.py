"""The base model of a cascade as `sample.base` names it. This module loads no torch."""

from functools import partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import from_json

from diffusion.system.limits import MAX_NAME, MAX_PATH
from diffusion.system.section import Section, canonical_json

IN_CODE_DIGEST = False  # diffusion/code_digest.py

SOURCES = ("file", "run_id", "champion")
Name = partial(Field, default=None, min_length=1, pattern=r"^[^\x00]+$")


class BaseConfig(Section):
    """The base model of a cascade: another model enlarges its images (Ho et al. 2021, 2106.15282).

    It is a model file, the model of an MLflow run, or the champion of a registered model: one of `file`,
    `run_id` and `champion`. `sampling` are its options, as in the section `sample`, with steps and eta; seed
    and classes are those of the cascade.
    """

    file: Annotated[str | None, Name(max_length=MAX_PATH)] = None
    run_id: Annotated[str | None, Name(max_length=MAX_NAME)] = None
    champion: Annotated[str | None, Name(max_length=MAX_NAME)] = None
    sampling: dict[str, Any] = Field(default_factory=dict, max_length=100)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if sum(getattr(self, source) is not None for source in SOURCES) != 1:
            raise ValueError(f"give one of {', '.join(SOURCES)}")
        return self

    def __str__(self) -> str:
        return next(f"{name} {value}" for name in SOURCES if (value := getattr(self, name)) is not None)


def base_text(base: BaseConfig) -> str:
    """Return the base as cards and command lines have it: JSON."""
    return canonical_json(base.model_dump(mode="json", exclude_defaults=True))


def _parse_base(values: Any) -> Any:
    """Parse the text form: JSON, or the path of a file."""
    if not isinstance(values, str):
        return values
    return from_json(values) if values.startswith("{") else {"file": values}


Base = Annotated[BaseConfig, BeforeValidator(_parse_base)]
