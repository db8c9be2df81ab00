"""The table of docs/evidence.md: verdicts as `diffctl verdict --json` prints them."""

from collections.abc import Iterable
from typing import Any

from docs.site.tables import literal, table, with_part

HEAD = ("change", "score", "gap", "interval", "pairs", "decision", "machine", "commit", "command")
EMPTY = "No verdict has been stored yet."
ORIGIN = ("machine", "commit", "command")  # keys that verdicts before `--equal` lack: add them by hand

Verdict = dict[str, Any]


def with_evidence(markdown: str, verdicts: Iterable[Verdict]) -> str:
    """Return the page with a row for each change of these verdicts between its marks."""
    rows = [_row(verdict, change) for verdict in verdicts for change in verdict["changes"]]
    return with_part(markdown, "evidence", table(HEAD, rows).rstrip() if rows else EMPTY)


def missing_keys(verdict: Verdict) -> list[str]:
    """Return the keys of a row that the verdict lacks."""
    return [key for key in ORIGIN if not verdict.get(key)]


def _row(verdict: Verdict, change: dict[str, Any]) -> list[str]:
    gap, interval = change["gap"], change["interval"]
    score = f"{verdict['metric']}, {verdict['images']:,} images" if verdict["images"] else verdict["metric"]
    if (equal := verdict.get("equal", "steps")) not in (None, "steps"):
        score += f", equal {equal}"
    digits = _digits(interval)
    return [
        _name(change),
        score,
        "" if gap is None else _number(gap, digits),
        "" if interval is None else " to ".join(_number(end, digits) for end in interval),
        str(len(change["pairs"])),
        _decision(change),
        verdict["machine"],
        literal(verdict["commit"]),
        literal(verdict["command"]),
    ]


def _decision(change: dict[str, Any]) -> str:
    """Return the decision, bold if there is one."""
    if change["decision"] != "no evidence":
        return f"**{change['decision']}**"
    return "no difference" if change["interval"] == [0, 0] else "no evidence"


def _name(change: dict[str, Any]) -> str:
    """Return the change as it was given, and the fields of a file's."""
    if "=" in change["change"]:
        return literal(change["change"])
    return f"{literal(change['change'])}: {', '.join(change['differences'])}"


def _digits(interval: list[float] | None) -> int:
    """Return the decimal places that show two digits of half of the interval."""
    if interval is None:
        return 1
    half = (interval[1] - interval[0]) / 2
    places = 0
    while 0 < half < 10 and places < 6:
        half, places = 10 * half, places + 1
    return places


def _number(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"
