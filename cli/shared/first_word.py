"""A command's first word to a person, before torch, MLflow or Prefect take their seconds to load."""

import contextlib
import sys


def begin(doing: str, silent: bool = False) -> None:
    """Say on a terminal's stderr what is being done; `silent` where a script reads, or it was said already.

    It stands before a command's first heavy import, and after what refuses a command without one. Where no
    terminal is, stderr has failures alone: one sentence of one failure.
    """
    if not silent and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError):  # it is closed just now
            print(f"{doing} …", file=sys.stderr, flush=True)
