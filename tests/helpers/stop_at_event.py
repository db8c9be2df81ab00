"""Run `diffctl` and stop it at a moment counted in events, not in time.

    python -m tests.helpers.stop_at_event ARGUMENTS

MOMENT is, for example, "stage train:import:700:2": at the 700th audit event `import` of that process signal
2, twice at once with ":2:2". The first process started in this way gets the signal.
COUNTS names a folder for how many events of each name there were in all.
"""

import atexit
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

COUNTED = ("import", "open", "os.rename", "socket.connect")


def watch(name: str) -> None:
    """Count this process's events, and send the signal at the chosen one."""
    os.environ.setdefault("TARGET", str(os.getpid()))
    process, event, number, *signals = os.environ.get("MOMENT", ":::").split(":")
    counts: Counter[str] = Counter()
    mine = os.getpid()

    def hook(happened: str, arguments: object) -> None:
        if happened not in COUNTED or os.getpid() != mine:
            return
        counts[happened] += 1
        if (process, event, number) == (name, happened, str(counts[happened])):
            send_signals([int(text) for text in signals])

    sys.addaudithook(hook)
    if folder := os.environ.get("COUNTS"):
        atexit.register(lambda: (Path(folder) / f"{name}.json").write_text(json.dumps(counts)))


def send_signals(signals: list[int]) -> None:
    """Send them; by a child where there are several, for the first may end the sender."""
    target = int(os.environ["TARGET"])
    if len(signals) == 1:
        os.kill(target, signals[0])
    elif os.fork() == 0:
        for number in signals:
            os.kill(target, number)
        os._exit(0)


if __name__ == "__main__":
    watch(" ".join(sys.argv[1:3]))
    sys.argv[0] = "diffctl"
    runpy.run_module("cli.entry", run_name="__main__")
