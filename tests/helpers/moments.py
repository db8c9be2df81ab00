"""`diffctl`, run so that `diffctl run` is told to stop at a moment that is counted in events, not in time.

    python -m tests.helpers.moments ARGUMENTS

MOMENT says when, as in "stage train:import:700:2": at that process's 700th audit event of the name, signal 2
(twice, with ":2:2"). COUNTS names a folder for how many events of each name there are in all.
"""

import atexit
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

COUNTED = ("import", "open", "os.rename", "subprocess.Popen", "socket.connect", "os.mkdir")


def watch(name: str) -> None:
    """Count this process's events, and send the signal when it is time."""
    if name == "run":
        os.environ["TARGET"] = str(os.getpid())
    process, event, number, *signals = os.environ.get("MOMENT", ":::").split(":")
    counts: Counter[str] = Counter()
    mine = os.getpid()

    def hook(happened: str, arguments: object) -> None:
        if happened not in COUNTED or os.getpid() != mine:
            return
        counts[happened] += 1
        if (process, event) == (name, happened) and counts[happened] == int(number):
            tell([int(text) for text in signals])

    sys.addaudithook(hook)
    if folder := os.environ.get("COUNTS"):
        atexit.register(lambda: (Path(folder) / f"{name}.json").write_text(json.dumps(counts)))


def tell(signals: list[int]) -> None:
    """Send them to `diffctl run`, which may be this very process: so a child sends several."""
    target = int(os.environ["TARGET"])
    if len(signals) == 1:
        os.kill(target, signals[0])
    elif os.fork() == 0:
        for number in signals:
            os.kill(target, number)
        os._exit(0)


if __name__ == "__main__":
    watch(" ".join(word for word in sys.argv[1:3] if not word.startswith("-")))
    sys.argv[0] = "diffctl"
    runpy.run_module("cli.entry", run_name="__main__")
