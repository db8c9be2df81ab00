"""The section `search` of params.yaml: the fields that a search varies, and how it chooses their values."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from diffusion.system.section import NotBool, Section, Seed, ShortText

MOST_FIELDS, MOST_VALUES, MOST_TRIALS = 20, 100, 10_000
MOST = 1e15  # of a number that is searched over
SECTIONS = ("model", "process", "train")  # what decides a training; all else is the same for all of them
OF_DATA = ("data.flip",)  # of the data, what needs no preparing anew

Number = Annotated[int | float, Field(ge=-MOST, le=MOST), NotBool]


class Range(Section):
    """Numbers from `low` to `high`, both among them: whole ones where both ends are, else real ones.

    `log` spreads them evenly over orders of magnitude.
    """

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _goes_up(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0 (got {self.low})")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_VALUES)]


class SearchConfig(Section):
    """What `diffctl search` varies. `fields` has, by a field's dotted name, a list of values or a range.

    The `method` is grid (every combination once), random, or tpe (Optuna's tree of Parzen estimators,
    Bergstra et al. 2011, by what the trials before came to). `trials` is how many; a grid has all of its own
    where it is None. With `prune` a training ends early whose validation loss is over the median of those
    before at the same step. What a trial gets is a function of `seed`, its number and the trials before.
    """

    fields: Annotated[dict[ShortText, Range | Values], Field(min_length=1, max_length=MOST_FIELDS)]
    method: Literal["grid", "random", "tpe"] = "random"
    trials: Annotated[int, Field(gt=0, le=MOST_TRIALS), NotBool] | None = None
    seed: Seed = 0
    prune: bool = False

    @model_validator(mode="after")
    def _fields_are_of_trainings(self) -> Self:
        for name in self.fields:
            if name not in OF_DATA and name.partition(".")[0] not in SECTIONS:
                allowed = ", ".join((*SECTIONS, *OF_DATA))
                raise ValueError(
                    f"fields.{name}: a search is over what decides a training ({allowed}); "
                    "`diffctl sweep` varies the sampling"
                )
            if above := [other for other in self.fields if name.startswith(f"{other}.")]:
                raise ValueError(f"fields.{name} lies in fields.{above[0]}: one of them can be varied")
        return self

    @model_validator(mode="after")
    def _values_are_different(self) -> Self:
        for name, values in self.fields.items():
            if not isinstance(values, Range) and any(
                same(one, other) for i, one in enumerate(values) for other in values[:i]
            ):
                raise ValueError(f"fields.{name}: each value may stand once")
        return self

    @model_validator(mode="after")
    def _method_has_an_end(self) -> Self:
        ranges = [name for name, values in self.fields.items() if isinstance(values, Range)]
        if self.method == "grid" and ranges:
            raise ValueError(f"fields.{ranges[0]}: a grid needs a list of values")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"trials: {self.method} needs to be told how many")
        return self


def same(one: Any, other: Any) -> bool:
    """Whether two values of YAML are the same; yes and 1 are not."""
    return type(one) is type(other) and bool(one == other)
