"""What commands have said when their first heavy import begins: `python -m tests.helpers.first_word`.

It reads command lines as JSON, each a list with what is added to its environment, and prints as JSON what
each had said on stdout and at a terminal's stderr by the first import of a package of HEAVY, in a process of
its own that ends there: null where there was none.
"""

import json
import os
import sys
import tempfile

import cli.main
import diffusion.config
import diffusion.evaluate.pair
import flows.local
import tracking.registry

LIGHT = (diffusion.config, diffusion.evaluate.pair, flows.local, tracking.registry)  # once, not a command
HEAVY = ("fastapi", "matplotlib", "mlflow", "pandas", "prefect", "ray", "sklearn", "sqlalchemy", "torch")


def heard(arguments: list[str], more: dict[str, str]) -> list[str] | None:
    """What the command has said by then."""
    ours, theirs = os.openpty()
    with (
        tempfile.TemporaryFile() as out,
        open(theirs, "wb") as terminal,
        open(ours, "rb", buffering=0) as err,
    ):
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(terminal.fileno(), 2)
            os.environ.update(more)
            sys.addaudithook(_leave)
            sys.argv = ["diffctl", *arguments]
            try:
                cli.main.main()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        os.set_blocking(ours, False)
        said = [stream.read() or b"" for stream in (out, err)]  # None: the terminal was told nothing
    if os.waitstatus_to_exitcode(status):
        return None
    return [part.decode().replace("\r\n", "\n") for part in said]


def _leave(event: str, arguments: tuple[object, ...]) -> None:
    if event == "import" and str(arguments[0]).partition(".")[0] in HEAVY:
        os._exit(0)


if __name__ == "__main__":
    assert sys.modules.keys().isdisjoint(HEAVY), f"one of {LIGHT} loads something heavy"
    json.dump([heard(*line) for line in json.load(sys.stdin)], sys.stdout)
