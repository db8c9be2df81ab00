"""The leaderboards of docs/speedrun.md and docs/objectives.md: tables of those benchmarks' results."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from docs.site.tables import with_part

NFE = 50  # of the record; entries with more are listed apart
RECORD_SEEDS = 3
EMPTY = "No entry has been measured yet."
TARGET = 250  # the distance of the second track
T95 = {2: 6.314, 3: 2.92, 4: 2.353, 5: 2.132}  # one-sided quantiles of t by the number of seeds
HEAD = "| entry | what changed | FD | NFE | parameters | steps × batch | chosen | commit, date |"

Result = dict[str, Any]


def with_leaderboard(markdown: str, results: Iterable[Result]) -> str:
    """Return the page with the tables of these results between its marks."""
    return with_part(markdown, "leaderboard", leaderboard(results))


def leaderboard(results: Iterable[Result]) -> str:
    """Return a table of the entries with 50 NFE, the best first, one of those with more, and real images."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["entry"], result["machine"]), []).append(result)
    timed = [group for group in groups.values() if "budget" in group[0]]
    ordered = sorted((group for group in groups.values() if group not in timed), key=_mean)
    tables = []
    for of_more in (False, True):
        rows = [_row(group) for group in ordered if (_nfe(group) > NFE) == of_more]
        title = [f"More than {NFE} NFE:", ""] if of_more else []
        tables += ["\n".join([*title, HEAD, "|" + " --- |" * 8, *rows])] if rows else []
    real = sorted({(one["machine"], one["real"]) for group in ordered for one in group})
    notes = [f"Real training images: {fd:.1f}. Machine: {where}." for where, fd in real]
    return "\n\n".join([*tables, *([_target_table(timed)] if timed else []), *notes]) or EMPTY


def mean_distances(results: Iterable[Result]) -> dict[str, float]:
    """Return the mean distance of each entry with 50 NFE, by which the entry to build on is chosen.

    It is to the part of the test split for this choice, or to the reported one if a result has no other.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result["nfe"] <= NFE and "budget" not in result:
            groups.setdefault(result["entry"], []).append(result)
    has_part = all("fd_build" in one for group in groups.values() for one in group)
    return {name: _mean(group, "fd_build" if has_part else "fd") for name, group in groups.items()}


def _target_table(groups: list[list[Result]]) -> str:
    """Return the table of the second track, the shortest time first."""
    rows = [f"Time to FD ≤ {TARGET}:", "", "| entry | seconds of training | FD | reached | commit, date |"]
    rows.append("|" + " --- |" * 5)
    for group in sorted(groups, key=lambda group: (group[0]["budget"], _mean(group))):
        first = group[0]
        each = ", ".join(f"{one['fd']:.0f}" for one in group)
        fd = f"{_mean(group):.0f} ({each})"
        cells = [f"`{first['entry']}`", f"{first['budget']:g}", fd, "yes" if reaches_target(group) else "no"]
        rows.append(f"| {' | '.join(cells)} | `{first['commit']}`, {first['date']} |")
    return "\n".join(rows)


def reaches_target(group: list[Result]) -> bool:
    """Whether the one-sided 95% limit of the mean distance is at most TARGET, of three seeds or more."""
    if not RECORD_SEEDS <= len(group) <= max(T95):
        return False
    error = float(statistics.stdev(one["fd"] for one in group)) / math.sqrt(len(group))
    return _mean(group) + T95[len(group)] * error <= TARGET


def _mean(group: list[Result], name: str = "fd") -> float:
    return statistics.fmean(one[name] for one in group)


def _nfe(group: list[Result]) -> int:
    return max(int(one["nfe"]) for one in group)


def _row(group: list[Result]) -> str:
    """Return the row of an entry's results, one a seed; bold with the seeds of a record."""
    first, several = group[0], len(group) > 1
    spread = f" ± {statistics.stdev(one['fd'] for one in group):.0f}" if several else ""
    fd = f"{_mean(group):.0f}{spread} ({len(group)} {'seeds' if several else 'seed'})"
    if "steps" in first:
        shape = f"{first['parameters'] / 1e6:.2f} M", f"{first['steps']:,} × {first['batch']}"
    else:
        shape = first["how"], ""
    what = f"{first['what']}; after `{first['after']}`" if first["after"] else first["what"]
    cells = [f"`{first['entry']}`", what, f"**{fd}**" if len(group) >= RECORD_SEEDS else fd]
    cells += [str(_nfe(group)), *shape, "; ".join(sorted({_chosen(one) for one in group}))]
    return f"| {' | '.join(cells)} | `{first['commit']}`, {first['date']} |"


def _chosen(result: Result) -> str:
    """Return the average and the options of sampling that were chosen among several."""
    tried = {key for one in result.get("tried", []) for key in one["change"]}
    options = (f"{key} {result['sample'][key]}" for key in sorted(tried))
    return ", ".join([result.get("average", ""), *options])
