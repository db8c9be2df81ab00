"""What a saved state holds beside its tensors: a training's counters, its curve so far, and its code."""

from pydantic import Field, NonNegativeInt

from diffusion.code import CodeSince
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
