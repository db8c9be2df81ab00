"""The `diffctl` script. A signal ends it silently until the command line listens: nothing has begun yet.

Python's own answer to a Ctrl-C is a traceback, also in the midst of the first imports: so this comes before
them.
"""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os._exit(128 + number)


for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, _leave)

if sys.platform == "darwin":  # what torch has not for an Apple GPU yet is computed by the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

from cli.main import main  # noqa: E402 (that is the point)

if __name__ == "__main__":
    main()
