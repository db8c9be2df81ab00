"""Champion moves as recorded in MLflow's tags."""

from typing import Any

SCORE = {"cell": "steps5-eta0", "metric": "kd_effnet_lite0_64", "value": 0.1}


def move(number: int, before: int | None, after: int, how: str) -> dict[str, Any]:
    """Return all fields of a move with that number."""
    return {
        "id": identity(number),
        "number": number,
        "at": 1_700_000_000_000,
        "who": "ann@host",
        "before": before,
        "after": after,
        "how": how,
        "reason": "better",
        "note": "it was",
        "commit": "c" * 40,
        "score": SCORE,
        "against": SCORE if before else None,
    }


def identity(number: int) -> str:
    """Return the id of a move with that number."""
    return f"{number:032x}"
