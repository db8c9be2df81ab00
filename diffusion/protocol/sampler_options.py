"""The options of each sampler, the section `sample.sampler_options`. This module loads no torch."""

from typing import Annotated, Literal

from pydantic import Field

from diffusion.system.section import NotBool, Section

CHANGES_RESULTS = False  # diffusion/code_digest.py

MAX_ADAMS_ORDER = 4


class IPNDMOptions(Section):
    """The Adams–Bashforth `order`, from 1, which is Euler's method."""

    order: Annotated[int, Field(ge=1, le=MAX_ADAMS_ORDER), NotBool] = 4


class UniPCOptions(Section):
    """The `order` of the predictor, and the `variant` of B(h): h, bh1, or e^h − 1, bh2."""

    order: Annotated[int, Field(ge=2, le=3), NotBool] = 3
    variant: Literal["bh1", "bh2"] = "bh2"


class AncestralOptions(Section):
    """`eta` of the ancestral noise is added, from 0, none, to 1, all, times `s_noise`."""

    eta: Annotated[float, Field(ge=0, le=1), NotBool] = 1.0
    s_noise: Annotated[float, Field(ge=0, le=2), NotBool] = 1.0
