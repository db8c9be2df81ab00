"""The `diffctl` script. A Ctrl-C ends it silently, as it does any program, until the command line listens.

Python's own answer is a traceback, also in the midst of the first imports: so this comes before them.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

from cli.main import main  # noqa: E402 (that is the point)

if __name__ == "__main__":
    main()
