"""Raw files that cannot be used: the full list as CSV, a summary as a sentence."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import write_text

CHANGES_RESULTS = False  # diffusion/code_digest.py

SHOWN = 3  # paths of each kind in a sentence


class Problem(NamedTuple):
    """A file or class (relative to the data set's folder) and why it cannot be used."""

    where: str
    why: str


def summarize(problems: Sequence[Problem]) -> str:
    """Return counts by kind with the first paths: "2 truncated (a/1.png, b/7.png), 1 empty class (c)"."""
    parts = []
    for why, count in sorted(Counter(problem.why for problem in problems).items()):
        paths = [printable(problem.where) for problem in problems if problem.why == why]
        more = ", …" if count > SHOWN else ""
        parts.append(f"{count:,} {why} ({', '.join(paths[:SHOWN])}{more})")
    return "; ".join(parts)


def count_problems(problems: Sequence[Problem]) -> dict[str, int]:
    """Return the number of problems of each kind."""
    return dict(sorted(Counter(problem.why for problem in problems).items()))


def write_list(path: Path, problems: Sequence[Problem]) -> None:
    """Write all problems as CSV with the columns file and why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "why"))
    writer.writerows((printable(problem.where), problem.why) for problem in problems)
    write_text(path, text.getvalue())


def refuse_problems(problems: Sequence[Problem], listing: Path) -> None:
    """Raise a DiffctlError with the summary if there are problems; write the full list to `listing`."""
    if not problems:
        return
    write_list(listing, problems)
    raise DiffctlError(
        f"{len(problems):,} of the raw files cannot be used: {summarize(problems)}; repair or remove them, "
        f"or set data.on_bad: skip to leave them out (all of them are listed in {listing})"
    )
