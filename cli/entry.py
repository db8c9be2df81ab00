"""The `diffctl` script. Until the command line has its own signal handlers, a signal ends it silently.

Python would print a traceback for a Ctrl-C during the first imports, so these handlers are set before them.
"""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os._exit(128 + number)


for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, _leave)

if sys.platform == "darwin":  # operations that torch lacks for Apple GPUs run on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

from cli.main import main  # noqa: E402 (the handlers come first)

if __name__ == "__main__":
    main()
