"""A toy project under real DVC: the pipeline's six stages as small scripts with configurable behaviour."""

import os
import subprocess
from pathlib import Path

import psutil
import yaml

from tests.conftest import start_python, write_params
from tests.helpers.waiting import wait_until

# A file `be-STAGE` with a Python statement configures what a stage does before it writes its out.
WORK = """
import os, signal, sys, time
from pathlib import Path
from diffusion.system.errors import DiffctlError, Interrupted, TemporaryError, UsageError

stage, out = sys.argv[1:]
behaviour = Path(f"be-{stage}")

def fail(error):  # like `diffctl stage`
    import cli.main

    def work(obj):
        raise error

    cli.main.app = work
    cli.main.main()

def train(slow=False):  # like a training: run long, save on the first signal, or later once `allow` exists
    def save(number, frame):
        while slow and not Path("allow").exists():
            time.sleep(0.01)
        Path("saved").write_text(signal.Signals(number).name)
        sys.exit(128 + number)
    signal.signal(signal.SIGINT, save)
    Path("begun").write_text(str(os.getpid()))
    time.sleep(60)

def stubborn():  # ignore signals
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("begun").write_text(str(os.getpid()))
    time.sleep(60)

print(f"{stage} at work", flush=True)
if behaviour.exists():
    exec(behaviour.read_text())
Path(out).write_text(stage)
"""

GRAPH = {
    "data": ([], "prepared"),
    "reference": (["prepared"], "features"),
    "train": (["prepared"], "model"),
    "sample": (["model"], "samples"),
    "evaluate": (["samples", "features"], "scores"),
    "report": (["scores"], "page"),
}


def toy_project(folder: Path) -> Path:
    """Write the project into the folder: Git, DVC, params.yaml and the graph."""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (folder / ".gitignore").write_text(
        "/.prefect/\n/be-*\n" + "".join(f"/{out}\n" for _, out in GRAPH.values())
    )
    (folder / "work.py").write_text(WORK)
    stages = {
        name: {"cmd": f"python work.py {name} {out}", "deps": [*deps, "work.py"], "outs": [out]}
        for name, (deps, out) in GRAPH.items()
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    write_params(folder)
    return folder


def be(folder: Path, stage: str, behaviour: str) -> None:
    """Configure what a stage does before it writes its out."""
    (folder / f"be-{stage}").write_text(behaviour)


def script(folder: Path, code: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start Python code in the folder, in its own session, with stderr on stdout."""
    return start_python(folder, "-c", code, env=env, stderr=subprocess.STDOUT)


def reproducing(stage: str, before: str = "") -> str:
    """Return code that updates a stage and exits like diffctl."""
    return (
        "import asyncio, sys\nimport flows.dvc_stage\n"
        "from diffusion.system.errors import DiffctlError, Interrupted\n"
        f"{before}\n"
        f"try:\n    asyncio.run(flows.dvc_stage.reproduce({stage!r}))\n"
        "except (DiffctlError, Interrupted) as error:\n    print(error)\n    sys.exit(error.exit_code)\n"
    )


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes with this working directory, without zombies."""
    running = psutil.process_iter(["status", "cwd"])
    here = [process for process in running if process.info["cwd"] == str(folder.resolve())]
    alive = [process for process in here if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in alive if process.pid != os.getpid()]


def wait_for_file(path: Path, seconds: float = 60) -> None:
    """Wait until the file is not empty."""
    wait_until(lambda: path.exists() and path.read_text() != "", seconds)


def wait_until_left(folder: Path, seconds: float = 20) -> None:
    """Wait until no process has this working directory."""
    wait_until(lambda: not processes_in(folder), seconds)
