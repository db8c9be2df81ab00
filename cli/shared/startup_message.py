"""A message on the terminal before a command imports slow packages such as torch, MLflow or Prefect."""

import contextlib
import sys


def begin(doing: str, silent: bool = False) -> None:
    """Print what the command does, if stderr is a terminal; `silent` for scripts and child processes.

    Elsewhere stderr contains failures only.
    """
    if not silent and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError):  # it was closed
            print(f"{doing} …", file=sys.stderr, flush=True)
