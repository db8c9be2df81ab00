"""Start the processes of trials, one by one here or in parallel on Ray."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cli.shared.options import RayOptions
from diffusion.config import Config
from diffusion.search.search_dir import Trial, TrialResult
from diffusion.search.trial_runner import TrialRunner
from diffusion.system.signals import stop_request
from flows.ray.trial_runner import ray_trials, run_process

MODULE = ("-P", "-m", "cli.entry", "search-trial")  # arguments of Python, before the folder


def run_in_process(folder: Path) -> TrialResult:
    """Run the trial in a child process, which frees its memory. Interrupted on a signal, after a save."""
    with stop_request() as stop:
        result = run_process([sys.executable, *MODULE, str(folder)], folder, stop)
        stop.raise_if_set()
    assert result is not None, "it was not stopped"
    return result


def trial_runner(
    options: RayOptions,
    config: Config,
    folder: Path,
    run: Callable[[Trial], TrialResult],
    address: str | None = None,
) -> AbstractContextManager[TrialRunner]:
    """Return the runner of the trials in a folder: here, one by one by `run`, or on Ray."""
    if not options.ray:
        return nullcontext(TrialRunner(run))
    return ray_trials(
        address or config.sample.address,
        folder,
        (*MODULE, "--local"),
        at_once=options.max_parallel,
        cpus=options.cpus or 1,
        gpus=config.train.devices if isinstance(config.train.devices, int) else 1,
    )
