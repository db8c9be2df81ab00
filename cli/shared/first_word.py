"""A command's first word, said before torch, MLflow or Prefect take their seconds to load."""

import contextlib
import sys


def begin(doing: str, silent: bool = False) -> None:
    """Say on stderr what is being done, unless a script reads, or whoever started this has said it: `silent`.

    It stands before a command's first heavy import, and after what refuses a command without one.
    """
    if not silent:
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"{doing} …", file=sys.stderr, flush=True)
