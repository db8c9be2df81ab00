"""Who was champion: every move on record, in the order in which they happened.

MLflow's alias has neither a history nor a compare-and-set, so the alias only follows what is recorded here.
A move is a tag of the registered model, whose key has an id of its own: two are never one, and none is
written over. Which of them count is decided by params of a run, one a number, that MLflow lets nobody write
twice: of two moves with one number that one counts whose id stands there. The other was never carried out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from diffusion.choice.ranking import Cells, best_cell
from diffusion.system.errors import DiffctlError
from diffusion.system.json_files import parse_json
from diffusion.system.section import PositiveInt, Section, ShortText
from tracking.keys import CHAMPION, EVENT, HISTORY_RUN, PREVIOUS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_REASON = 1000  # characters; MLflow's database has room for 5,000 in a tag
MAX_NOTE = 500
MAX_TIME = 253_402_300_799_999  # milliseconds since 1970: the end of the year 9999


class Score(Section):
    """What a version was judged by: its best cell, the score that ranks there, and its value."""

    cell: ShortText
    metric: ShortText
    value: Annotated[float, Field(ge=-1e15, le=1e15)]


class Move(Section):
    """A move of the champion from the version `before` (None: there was none) to `after`.

    `at` is in milliseconds since 1970 by the clock of who moved it; `how` says by whose decision, "anew" that
    both are the same weights, scored again; `note` is what a person gave as the reason; `commit` is the
    version's; `score` is its score, `against` the other's.
    """

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    number: PositiveInt
    at: Annotated[int, Field(ge=0, le=MAX_TIME)]
    who: ShortText
    how: Literal["gate", "force", "rollback", "anew"]
    before: PositiveInt | None
    after: PositiveInt
    reason: Annotated[str, Field(max_length=MAX_REASON)]
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""
    commit: ShortText | None = None
    score: Score | None = None
    against: Score | None = None

    @property
    def key(self) -> str:
        """The tag that the move is recorded in."""
        return f"{EVENT}.{format_number(self.number)}.{self.id}"


@dataclass(frozen=True)
class History:
    """The moves of a registered model's champion, and where MLflow's aliases point.

    `events` are those that count, in order; `unclaimed` were recorded and never carried out. `run_id` is the
    run whose params are the claims, None before the first move.
    """

    name: str
    run_id: str | None
    events: tuple[Move, ...]
    unclaimed: tuple[Move, ...]
    aliases: dict[str, int]

    @property
    def holder(self) -> int | None:
        """The champion's version. Where nothing is recorded it is the alias's, which somebody else set."""
        return self.events[-1].after if self.events else self.aliases.get(CHAMPION)

    @property
    def holders(self) -> list[int]:
        """The versions that a rollback would go back to one after the other, the last one the holder.

        A version that was scored anew gives its place to the one that it became.
        """
        held = [self.events[0].before] if self.events and self.events[0].before else []
        for event in self.events:
            if event.how == "rollback" and event.after in held:
                del held[held.index(event.after) + 1 :]
            else:
                left = {event.after, event.before} if event.how == "anew" else {event.after}
                held = [version for version in held if version not in left] + [event.after]
        return held

    @property
    def previous(self) -> int | None:
        """The version that a rollback goes back to; None when there is none."""
        held = self.holders
        return held[-2] if len(held) > 1 else None

    @property
    def pinned(self) -> dict[int, Move]:
        """The versions that a rollback took the place from, each with it, until a person puts one back.

        With each come those of the same weights that it was before it was scored anew. The gate does not
        promote them: it has once found them better, and a person knew more.
        """
        pins: dict[int, Move] = {}
        for number, event in enumerate(self.events):
            if event.how == "rollback":
                before = History(self.name, None, self.events[:number], (), {})
                pins.update(dict.fromkeys(before._left_by(event), event))
            pins.pop(event.after, None)
        return pins

    def _left_by(self, rollback: Move) -> set[int]:
        """The versions that a rollback, the next move, takes the place from."""
        held = self.holders
        later = held[held.index(rollback.after) + 1 :] if rollback.after in held else [rollback.before]
        left = {version for version in later if version is not None}
        for event in reversed(self.events):
            if event.how == "anew" and event.after in left and event.before is not None:
                left.add(event.before)
        return left

    @property
    def wrong_aliases(self) -> dict[str, int | None]:
        """The aliases that do not point where the record has them, each with where (None: nowhere)."""
        if not self.events:
            return {}
        wanted = {CHAMPION: self.holder, PREVIOUS: self.previous}
        return {alias: to for alias, to in wanted.items() if self.aliases.get(alias) != to}

    def as_json(self) -> dict[str, Any]:
        """Plain values for a script."""
        return {
            "name": self.name,
            "champion": self.holder,
            "previous": self.previous,
            "pinned": {str(version): event.id for version, event in self.pinned.items()},
            "events": [event.model_dump(mode="json") for event in self.events],
            "not_carried_out": [event.model_dump(mode="json") for event in self.unclaimed],
        }


def format_number(number: int) -> str:
    """A move's number as the keys of tags and params have it, so that they sort."""
    return f"{number:06d}"


def judged_score(cells: Cells) -> Score:
    """The score that a version is judged by."""
    cell, metric, value = best_cell(cells)
    return Score(cell=cell, metric=metric, value=value)


def read_history(client: "MlflowClient", name: str) -> History:
    """The history of a registered model; DiffctlError where a record is damaged or gone.

    What MLflow raises is the caller's: RESOURCE_DOES_NOT_EXIST where there is no such model.
    """
    model, claims = client.get_registered_model(name), dict[str, str]()
    run_id = model.tags.get(HISTORY_RUN)
    if run_id is not None:
        claims = client.get_run(run_id).data.params
        model = client.get_registered_model(name)  # after the claims: a move is recorded before it is claimed
    records = {key: value for key, value in model.tags.items() if key.startswith(f"{EVENT}.")}
    found = [parse_json(value, Move, f"the tag {key} of {name}") for key, value in records.items()]
    known = {event.id: event for event in found}
    counting = sorted((number, id) for number, id in claims.items() if number.isdigit())
    if gone := [number for number, id in counting if id not in known]:
        raise DiffctlError(
            f"the history of {name} is damaged: the tag of move {int(gone[0])} was deleted in MLflow"
        )
    events = tuple(known[id] for _, id in counting)
    unclaimed = sorted((event for event in found if event not in events), key=lambda event: event.key)
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    return History(name, run_id, events, tuple(unclaimed), aliases)
