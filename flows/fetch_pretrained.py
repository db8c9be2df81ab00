"""Pull pretrained weights with DVC if a checkout has only their .dvc file.

They are no dependency of the stage `train`, so `dvc repro` does not pull them for a training that does not
run. A stage may call DVC: while its command runs, DVC holds no lock of the folder.
"""

import subprocess
import sys
from typing import TYPE_CHECKING

from diffusion.layout import RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import file_lock

if TYPE_CHECKING:
    from diffusion.train.train_config import PretrainedConfig

LOCK = RUNS / "start.lock"  # all processes of a training need it, and DVC does not wait


def fetch_pretrained(config: "PretrainedConfig | None") -> None:
    """Pull the pinned weights from DVC's cache or remote unless they exist or DVC does not track them.

    Raise DiffctlError if DVC fails; the training itself reports untracked weights that are missing.
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
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = errors[0].removeprefix("ERROR: ") if errors else "no reason given"
        raise DiffctlError(
            f"train.init_from: {path} is missing, and `dvc pull {tracked}` failed ({why}): "
            "run `dvc push` where it was pinned"
        )
