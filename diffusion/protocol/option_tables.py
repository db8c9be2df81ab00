"""The tables of sampling options by name, and the axes of a sweep. This module loads no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from diffusion.protocol.options import Option, declared_options
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError
from diffusion.system.section import Section, SigmaRel

IN_CODE_DIGEST = False  # diffusion/code_digest.py


class ModelOptions(Section):
    """The options of a cell that select its model's weights."""

    ema: Annotated[
        SigmaRel | Literal["decay"] | None,
        Option(
            "EMA profiles by their σ_rel; decay: the EMA of the model file.",
            label="σ_rel",
            phrase="σ_rel = {}",
            stored=SigmaRel,
            unset="decay",  # the model file of a training, averaged by `train.ema_decay`
            http=False,
            registered=False,
        ),
    ] = None


SAMPLING_OPTIONS = declared_options(SampleSettings)  # the sampler's, by name
ALL_OPTIONS: Mapping[str, Option] = {**SAMPLING_OPTIONS, **declared_options(ModelOptions)}
AXES = tuple(name for name, one in ALL_OPTIONS.items() if one.axis)  # what a sweep may vary, in this order
MODEL_AXES = tuple(ModelOptions.model_fields)


def refuse_idle(given: Mapping[str, Any], settings: SampleSettings) -> None:
    """Raise UsageError for a nullable option that was given and has no effect next to the settings."""
    for name, value in given.items():
        option = ALL_OPTIONS.get(name)
        if option is None or option.default is not None or value is None:
            continue
        if why := option.idle_reason(lambda other: getattr(settings, other)):
            raise UsageError(f"{name} has no effect {why}: change that, or leave it out")
