"""The model that a training starts from, brought by DVC where a checkout has its .dvc file alone.

It is no dependency of the stage `train`, since only a training that runs needs it, so that `dvc repro` does
not pull it with the others. A stage may call DVC: while its command runs, DVC holds no lock of the folder.
"""

import subprocess
import sys
from typing import TYPE_CHECKING

from diffusion.layout import RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import file_lock

if TYPE_CHECKING:
    from diffusion.train.train_config import PretrainedConfig

LOCK = RUNS / "start.lock"  # processes of one training need it at once, and DVC has no patience


def fetch_pretrained(config: "PretrainedConfig | None") -> None:
    """Let DVC put the pinned model into `start`, from its cache or the remote; nothing where it is there.

    Nor where DVC does not know it: who needs it says so. DiffctlError where DVC does not bring it.
    """
    from diffusion.train.pretrained import dvc_file, pretrained_path

    if config is None:
        return
    path = pretrained_path(config.sha256)
    tracked = dvc_file(path)
    if path.exists() or not tracked.exists():
        return
    RUNS.mkdir(exist_ok=True)
    with file_lock(LOCK):
        if path.exists():
            return
        command = [sys.executable, "-m", "dvc", "pull", str(tracked)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not path.exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = said[0].removeprefix("ERROR: ") if said else "it does not say why"
        raise DiffctlError(
            f"train.init_from: {path} is not here, and `dvc pull {tracked}` does not bring it ({why}): "
            "`dvc push`, where it was pinned, sends it to the remote"
        )
