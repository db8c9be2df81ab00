"""MLflow tags and params of a champion's history."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cli.actions.champion import _row
from tests.helpers.champion_moves import identity, move
from tracking.keys import EVENT, HISTORY_RUN
from tracking.registry.champion_log import read_history
from tracking.registry.promotion import pin_reason

MOVES = ((None, 1, "gate"), (1, 2, "force"), (2, 1, "rollback"), (1, 3, "anew"))


@cache
def seeds() -> list[bytes]:
    """Return one move of every kind."""
    return [json.dumps(move(number, *moved)).encode() for number, moved in enumerate(MOVES, 1)]


def parse(path: Path) -> None:
    """Read the input as one more move of a valid history, and format the result."""
    texts = [*map(bytes.decode, seeds()), path.read_bytes().decode("utf-8", "replace")]
    records = {f"{EVENT}.{number:06d}.x": text for number, text in enumerate(texts)}
    ids = [*map(identity, range(1, len(MOVES) + 1)), _id(texts[-1])]
    claims = {f"{number:06d}": id for number, id in enumerate(ids, 1)}
    model = SimpleNamespace(tags={HISTORY_RUN: "run", **records}, aliases={"champion": "1"})
    client: Any = SimpleNamespace(
        get_registered_model=lambda name: model,
        get_run=lambda run_id: SimpleNamespace(data=SimpleNamespace(params=claims)),
    )
    history = read_history(client, "diffctl-digits")
    history.as_json(), history.wrong_aliases
    [_row(event) for event in (*history.events, *history.unclaimed)]
    [pin_reason(pin, version) for version, pin in history.pinned.items()]


def _id(text: str) -> str:
    try:
        return str(json.loads(text)["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return identity(3)
