"""Output of commands before their first heavy import: `python -m tests.helpers.startup_message`.

Standard input is JSON: a list of command lines, each with additions to the environment. Each runs in a forked
process that ends at its first import of a package in HEAVY. Standard output is JSON: what each printed to
stdout and to a terminal on stderr, or null if it imported none of them.
"""

import json
import os
import sys
import tempfile

import cli.main
import diffusion.config
import diffusion.evaluate.adhoc_inputs
import flows.prefect_server.local_servers
import tracking.registry.model_registry

LIGHT = (
    diffusion.config,
    diffusion.evaluate.adhoc_inputs,
    flows.prefect_server.local_servers,
    tracking.registry.model_registry,
)  # loaded once for all commands
HEAVY = ("fastapi", "matplotlib", "mlflow", "pandas", "prefect", "ray", "sklearn", "sqlalchemy", "torch")


def output_of(arguments: list[str], more: dict[str, str]) -> list[str] | None:
    """Return stdout and stderr before the first heavy import."""
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
        written = [stream.read() or b"" for stream in (out, err)]  # None: nothing was written
    if os.waitstatus_to_exitcode(status):
        return None
    return [part.decode().replace("\r\n", "\n") for part in written]


def _leave(event: str, arguments: tuple[object, ...]) -> None:
    if event == "import" and str(arguments[0]).partition(".")[0] in HEAVY:
        os._exit(0)


if __name__ == "__main__":
    assert sys.modules.keys().isdisjoint(HEAVY), f"one of {LIGHT} loads something heavy"
    json.dump([output_of(*line) for line in json.load(sys.stdin)], sys.stdout)
