"""The declaration of a sampling option."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from diffusion.protocol.options import Option, declared_options


class Section(BaseModel):
    """Options with bounds of each kind."""

    count: Annotated[int, Field(gt=0, lt=9), Option("")] = 1
    level: Annotated[float, Field(gt=0, lt=1), Option("")] = 0.5
    share: Annotated[float, Field(ge=0, le=1), Option("")] = 0.5
    free: Annotated[float, Option("")] = 0.0


@pytest.mark.parametrize(
    ("name", "ends"),
    [("count", (1, 8)), ("level", (5e-324, 1 - 2**-53)), ("share", (0, 1)), ("free", (None, None))],
)
def test_bounds_are_the_smallest_and_largest_allowed_values(name: str, ends: tuple[object, object]) -> None:
    option = declared_options(Section)[name]
    assert (option.bound(lower=True), option.bound(lower=False)) == ends
    for value in ends if name != "free" else ():
        Section.model_validate({name: value})
