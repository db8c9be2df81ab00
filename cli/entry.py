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

try:
    from diffusion.project import enter_project

    _started_in = enter_project()
    from cli.main import main as _main  # choices of options include the names of plugins' entries
except KeyboardInterrupt:  # of a plugin with signal handlers of its own
    sys.exit(128 + signal.SIGINT)
except Exception as _error:  # a UsageError, such as for a broken plugin
    if not hasattr(_error, "exit_code"):
        raise
    print(f"diffctl: {_error}", file=sys.stderr)
    sys.exit(_error.exit_code)


def main() -> None:
    """Run the command of the command line."""
    _main(_started_in)


if __name__ == "__main__":
    main()
