"""What a saved state holds beside its tensors: a training's counters, its curve so far, and its code."""

from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from diffusion.code_digest import CodeSince
from diffusion.system.section import Section

Means = dict[str, float]


class StateValues(Section):
    """The values of a training after `step` steps, as `train.state.Resumable` names them."""

    step: NonNegativeInt = 0
    skipped: NonNegativeInt = 0
    bad_in_a_row: NonNegativeInt = 0
    window: Means = Field(default_factory=dict)
    history: list[Means] = Field(default_factory=list)
    code: list[CodeSince] = Field(default_factory=list)

    @model_validator(mode="after")
    def _means_can_be_told(self) -> Self:
        if self.window and not self.window.get("count", 0.0) > 0:
            raise ValueError("window has sums of no steps")
        return self
