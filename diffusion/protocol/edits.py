"""The registries of linear operators and of methods that edit images, and the settings of an edit.

An operator A makes a measurement y = A·x_0 + σ_y·n. Its text form is `name` or `name:value`; a product lists
its factors in the order of their application, as `gray+downsample:2`. A new operator or method is an entry
here and a module with a builder. This module loads no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_PATH, MAX_SIDE
from diffusion.system.registry import BuilderEntry, Registry, WithOptions, check_name, load_reference
from diffusion.system.section import NotBool, Section, Steps, own_options, validate

IN_CODE_DIGEST = False  # diffusion/code_digest.py

PRODUCT = "+"
MAX_REPEAT = 100  # ten times RePaint's
MAX_SIGMA_Y = 2.0  # the whole range of a pixel


@dataclass(frozen=True)
class OperatorEntry(BuilderEntry, WithOptions):
    """`builder` makes a LinearOperator of (options, image shape); `options` is the class of its options.

    In the text form the value is that of the class's only field.
    """

    builder: str
    options: str = "diffusion.system.section:NoOptions"
    source: str = ""


@dataclass(frozen=True)
class MethodEntry(BuilderEntry, WithOptions):
    """`builder` makes a Sampler of (settings, options, measurement, process).

    A method that `needs_operator` restores a measurement; another one edits a picture. `operators` are the
    names of those that it can restore, by default all. A method with its `own_step` takes no sampler, eta or
    noise. With `takes_noise` it accepts the noise σ_y of a measurement. `uses_gradient` is whether it needs
    the gradient of the network.
    """

    builder: str
    options: str = "diffusion.system.section:NoOptions"
    source: str = ""
    needs_operator: bool = True
    operators: tuple[str, ...] | None = None
    own_step: bool = True
    takes_noise: bool = False
    uses_gradient: bool = False


class MaskOptions(Section):
    """The hidden part of an image, a box; None for a mask that is a picture."""

    box: Annotated[str, Field(pattern=r"^\d{1,4},\d{1,4},\d{1,4},\d{1,4}$")] | None = Field(
        default=None,
        description="The hidden pixels: LEFT,TOP,RIGHT,BOTTOM, without the right column and the bottom row.",
    )


class DownsampleOptions(Section):
    """The factor of a lower resolution."""

    factor: Annotated[int, Field(ge=2, le=MAX_SIDE), NotBool] = Field(
        description="A measured pixel is the mean of factor×factor pixels."
    )


class BlurOptions(Section):
    """The width of a blur."""

    sigma: Annotated[float, Field(gt=0, le=100), NotBool] = Field(
        description="The standard deviation of the Gaussian in pixels."
    )


OPERATORS: Registry[OperatorEntry] = Registry(
    "edit.operator",
    "(options, shape of an image) → `LinearOperator` (`diffusion/edit/operators.py`)",
    {
        "mask": OperatorEntry("diffusion.edit.operators:build_mask", "diffusion.protocol.edits:MaskOptions"),
        "downsample": OperatorEntry(
            "diffusion.edit.operators:Downsample", "diffusion.protocol.edits:DownsampleOptions"
        ),
        "gray": OperatorEntry("diffusion.edit.operators:Gray"),
        "blur": OperatorEntry("diffusion.edit.operators:Blur", "diffusion.protocol.edits:BlurOptions"),
    },
)


Repeat = Annotated[int, Field(gt=0, le=MAX_REPEAT), NotBool]


class TravelOptions(Section):
    """Steps back to larger noise, from which a method moves down again (RePaint, sec. 4.2)."""

    travel_length: Steps = Field(default=1, description="The steps of a move back to larger noise.")
    travel_repeat: Repeat = Field(default=1, description="How often each part of the path is passed.")


class DDNMOptions(TravelOptions):
    """Options of DDNM's own step."""

    eta: Annotated[float, Field(ge=0, le=1), NotBool] = Field(
        default=0.85,
        description="The share of new noise in σ': η·σ', next to √(1 − η²)·σ' of the predicted ε.",
    )


class RePaintOptions(TravelOptions):
    """Options of RePaint."""

    travel_length: Steps = Field(default=10, description="The steps of a move back to larger noise.")
    travel_repeat: Repeat = Field(default=10, description="How often each part of the path is passed.")


class DPSOptions(Section):
    """Options of DPS."""

    zeta: Annotated[float, Field(gt=0, le=1000), NotBool] | None = Field(
        default=None,
        description="ζ, the length of a move down the gradient; by default 0.5 for masks, else 0.3.",
    )
    eta: Annotated[float, Field(ge=0, le=1), NotBool] = Field(
        default=1.0, description="η of the reverse step: 1 is DDPM."
    )


class SDEditOptions(Section):
    """Options of SDEdit."""

    strength: Annotated[float, Field(gt=0, le=1), NotBool] = Field(
        default=0.5, description="The share of the steps, the last ones, that sample the picture again."
    )


METHODS: Registry[MethodEntry] = Registry(
    "edit.method",
    "(settings, options, measurement, process) → `Sampler` (`diffusion/edit/method.py`)",
    {
        "ddnm": MethodEntry(
            "diffusion.edit.methods.ddnm:build",
            "diffusion.protocol.edits:DDNMOptions",
            "Wang et al. 2022 (2212.00490), alg. 1 and 3",
            takes_noise=True,
        ),
        "projection": MethodEntry(
            "diffusion.edit.methods.projection:build",
            source="Wang et al. 2022 (2212.00490), eq. 10",
            own_step=False,
        ),
        "dps": MethodEntry(
            "diffusion.edit.methods.dps:build",
            "diffusion.protocol.edits:DPSOptions",
            "Chung et al. 2022 (2209.14687), alg. 1",
            takes_noise=True,
            uses_gradient=True,
        ),
        "repaint": MethodEntry(
            "diffusion.edit.methods.repaint:build",
            "diffusion.protocol.edits:RePaintOptions",
            "Lugmayr et al. 2022 (2201.09865), alg. 1",
            operators=("mask",),
        ),
        "sdedit": MethodEntry(
            "diffusion.edit.methods.sdedit:build",
            "diffusion.protocol.edits:SDEditOptions",
            "Meng et al. 2021 (2108.01073), alg. 1",
            needs_operator=False,
            own_step=False,
        ),
    },
)

MethodName = Annotated[str, AfterValidator(partial(check_name, registry=METHODS))]


def parse_operator(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the factors of an operator's text form, each as name and options; ValueError for a bad one."""
    return [_parse_factor(one) for one in text.split(PRODUCT)]


def _parse_factor(text: str) -> tuple[str, dict[str, Any]]:
    name, colon, value = text.partition(":")
    entry = OPERATORS[check_name(name, OPERATORS)]
    fields = load_reference(entry.options).model_fields
    if bool(colon) > len(fields) or bool(colon) < sum(one.is_required() for one in fields.values()):
        form = name + "".join(f":{one.upper()}" for one in fields)
        raise ValueError(f"{form} is the form of {name} (got {text!r:.120})")
    return name, own_options(entry, dict.fromkeys(fields, value) if colon else {}, name)


def _checked_operator(text: str) -> str:
    parse_operator(text)
    return text


OperatorText = Annotated[str, Field(max_length=MAX_PATH), AfterValidator(_checked_operator)]


class EditSettings(Section):
    """What an edit adds to the settings of sampling: the method, and what was measured.

    `operator` is the text form of A, where `mask` alone is a mask that is a picture. None edits the picture
    itself.
    """

    method: MethodName = "ddnm"
    method_options: dict[str, Any] = Field(default_factory=dict)
    operator: OperatorText | None = None
    sigma_y: Annotated[float, Field(ge=0, le=MAX_SIGMA_Y), NotBool] = 0.0

    @property
    def entry(self) -> MethodEntry:
        """The entry of the method."""
        return METHODS[self.method]

    @property
    def options(self) -> Any:
        """The options of the method, as their class."""
        return self.entry.parse(self.method_options)

    @model_validator(mode="after")
    def _check(self) -> Self:
        method, entry = self.method, self.entry
        own_options(entry, self.method_options, f"method_options of {method}")
        if entry.needs_operator and self.operator is None:
            raise ValueError(f"method {method} restores a measurement: give an operator, or use sdedit")
        if not entry.needs_operator and self.operator is not None:
            raise ValueError(f"method {method} takes no operator (got {self.operator})")
        if self.operator is not None and entry.operators is not None:
            names = [one.partition(":")[0] for one in self.operator.split(PRODUCT)]
            if wrong := [name for name in names if name not in entry.operators]:
                allowed = " and ".join(entry.operators)
                raise ValueError(f"method {method} restores {allowed} only (got {wrong[0]}): use ddnm")
        if self.sigma_y and not entry.takes_noise:
            others = [name for name, other in METHODS.items() if other.takes_noise]
            raise ValueError(f"method {method} accepts no noise: sigma_y needs {' or '.join(others)}")
        return self


def chosen_edit(
    method: str | None,
    method_options: Mapping[str, Any],
    operator: str | None,
    strength: float | None,
    sigma_y: float,
    origin: str,
) -> EditSettings:
    """Return the settings that are given; UsageError with `origin` if they do not fit.

    Without a method ddnm restores a measurement, and sdedit edits a picture. `strength` is an option of it.
    """
    own = dict(method_options) | ({} if strength is None else {"strength": strength})
    method = method or ("sdedit" if operator is None else "ddnm")
    values = {"method": method, "method_options": own, "operator": operator, "sigma_y": sigma_y}
    return validate(EditSettings, values, origin)


def check_method_settings(edit: EditSettings, sampler: str, eta: float, noise: str) -> None:
    """Raise UsageError for options of sampling that the method replaces by its own."""
    if not edit.entry.own_step:
        return
    for name, value, usual in (("sampler", sampler, "ddim"), ("eta", eta, 0), ("noise", noise, "small")):
        if value != usual:
            own = [one for one, entry in METHODS.items() if not entry.own_step and entry.needs_operator]
            raise UsageError(
                f"method {edit.method} has its own step and takes no {name} (got {value}): leave it out, "
                f"or use method {' or '.join(own)}"
            )
