"""Run the trials of a search as processes, by themselves or on Ray workers (`search --ray`).

A trial's state, model and scores are in the project's folder, which all machines share. A dead worker ends
its trial's process, and another worker resumes from the saved state.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from diffusion.code_digest import check_worker_version, library_version
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import TEMPORARY, DiffctlError, TemporaryError, UsageError
from diffusion.system.signals import StopRequest, stop_request
from diffusion.trials.trial_runs import ABOUT, About, Trial, TrialResult, TrialRunner, read_result, trial_dir
from flows.ray.ray_session import RETRIES, get_result, ray_session

POLL_SECONDS, PROCESS_POLL_SECONDS = 0.5, 0.1
STARTER = "DIFFCTL_SEARCH"  # the parent's id: the trial exits with it
STARTED = "DIFFCTL_STARTED"  # when the parent started the trial's process, by the monotonic clock
LOG = "trial.log"  # the output of a trial's process, in its folder
DEVICE, THREADS = "DIFFCTL_DEVICE", "OMP_NUM_THREADS"
SENT = ("MLFLOW_", "DIFFCTL_CACHE", DEVICE, THREADS)  # prefixes of variables sent to workers


@dataclass(frozen=True)
class TrialSpec:
    """What all trials share: the search's folder and key, the command, and environment variables.

    `command` has the arguments of Python before the trial's folder; `project` is the working directory.
    """

    project: Path
    search: Path
    key: str
    version: str
    command: tuple[str, ...]
    variables: dict[str, str]


class RayTrials(TrialRunner):
    """Runs trials on the machines of Ray."""

    def __init__(
        self, task: TrialSpec, resources: dict[str, int], at_once: int | None, stop: StopRequest
    ) -> None:
        import ray

        self._task, self._resources, self._at_once, self._stop = task, resources, at_once, stop
        self._make = ray.remote(run_trial).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_retries=RETRIES,
            retry_exceptions=[TrialKilled],
        )
        self._running: dict[Any, int] = {}

    def room(self) -> int:
        """Return how many trials may run concurrently."""
        room = max(1, _count_free(self._resources))  # without a machine, wait for one
        return room if self._at_once is None else min(room, self._at_once)

    def start(self, trial: Trial) -> None:
        """Submit the trial to Ray."""
        self._running[self._make.remote(self._task, trial.number)] = trial.number

    def ended(self) -> list[tuple[int, TrialResult]]:
        """Return the trials that ended; raise Interrupted on a signal, DiffctlError if one failed."""
        import ray

        ready, over = ray.wait(list(self._running), timeout=POLL_SECONDS)[0], []
        self._stop.raise_if_set()  # before the result of a trial that received the same Ctrl-C
        for reference in ready:
            number = self._running.pop(reference)
            subject = f"the trial in {trial_dir(self._task.search, number)}"
            result = get_result(reference, subject)
            if result is None:
                raise DiffctlError(f"{subject} was stopped: run the same command to resume it")
            over.append((number, result))
        return over

    def end(self) -> None:
        """Cancel all trials, which save their state, and wait for them."""
        import ray

        with suppress(ray.exceptions.RayError, ConnectionError):  # a lost cluster runs none
            for reference in self._running:
                ray.cancel(reference, force=False)
            left = list(self._running)
            while left:
                left = ray.wait(left, timeout=POLL_SECONDS)[1]


@contextmanager
def ray_trials(
    address: str | None, search: Path, command: Sequence[str], *, at_once: int | None, cpus: int, gpus: int
) -> Iterator[RayTrials]:
    """Yield a runner for the trials in the folder `search`; no trial outlives the block.

    Up to `at_once` trials run concurrently (None: as many as fit), each on `cpus` cores and, if Ray has any
    GPUs, on `gpus` of them. Ray's output goes to stderr. Raise UsageError if Ray is missing or no machine has
    the resources, DiffctlError if the cluster does not answer.
    """
    about = read_checksummed_json(search / ABOUT, About)
    sent = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
    variables = {THREADS: str(cpus)} | sent
    task = TrialSpec(Path.cwd(), search, about.key, library_version(), tuple(command), variables)
    with (
        redirect_stdout(sys.stderr),
        ray_session(address, "search --ray needs Ray: pip install 'diffctl[ray]'"),
    ):
        resources = _trial_resources(cpus, 0 if variables.get(DEVICE) == "cpu" else gpus)
        with stop_request() as stop:  # an exception from a signal's handler may be lost inside Ray
            trials = RayTrials(task, resources, at_once, stop)
            try:
                yield trials
            finally:
                trials.end()


def _trial_resources(cpus: int, gpus: int) -> dict[str, int]:
    """Return the resources of a trial by Ray's names; raise UsageError if no machine has them."""
    import ray

    resources = {"CPU": cpus}
    if gpus and ray.cluster_resources().get("GPU", 0):  # type: ignore[no-untyped-call]
        resources["GPU"] = gpus
    if not _count_free(resources):
        text = " and ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in resources.items())
        raise UsageError(f"a trial needs {text} on one machine, and no machine of Ray has them")
    return resources


def _count_free(resources: dict[str, int]) -> int:
    """Return how many trials fit on Ray's current machines."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return sum(min(int(one.get(name, 0) // count) for name, count in resources.items()) for one in machines)


# What runs on a worker, or without Ray on this machine.


def run_trial(task: TrialSpec, number: int) -> TrialResult | None:
    """Run or resume a trial; return None if Ray cancelled it, after it saved.

    Raise DiffctlError if this machine has another diffctl or not the project's folder, else as `run_process`.
    """
    check_worker_version(task.version)
    here = task.project / task.search
    about = None
    with suppress(FileNotFoundError, NotADirectoryError):
        about = read_checksummed_json(here / ABOUT, About)
    if about is None or about.key != task.key:
        raise DiffctlError(f"{socket.gethostname()} lacks the folder {here}, which all machines share")
    folder = trial_dir(task.search, number)
    if (ended := read_result(task.project / folder)) is not None:
        return ended  # an earlier worker finished it and was lost
    own = {name: value for name, value in os.environ.items() if not name.startswith(SENT)}
    with stop_request() as stop, open(task.project / folder / LOG, "ab") as log:
        ended = run_process(
            [sys.executable, *task.command, str(folder)],
            task.project / folder,
            stop,
            cwd=task.project,
            env=own | task.variables,
            log=log,
        )
        if ended is None and stop.signal != signal.SIGINT:  # Ray cancels by SIGINT
            raise TrialKilled(f"the worker of the trial in {folder} was stopped")
    return ended


class TrialKilled(DiffctlError):
    """A foreign signal ended a trial's process."""


def run_process(
    command: Sequence[str],
    folder: Path,
    stop: StopRequest,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
    log: IO[bytes] | None = None,
) -> TrialResult | None:
    """Run the trial in `folder`, forward a stop to it, and wait for its end.

    Return how the trial ended, None if it was stopped before. Its output goes to `log` if given. Raise
    DiffctlError, TrialKilled or TemporaryError if the process ended and the trial did not.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**env, STARTER: str(os.getpid()), STARTED: str(time.monotonic())},
        stdin=None if log is None else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,  # the search forwards Ctrl-C
    )
    is_stopped = False
    while process.poll() is None:
        if stop.signal is not None and not is_stopped:
            process.send_signal(signal.SIGTERM)
            is_stopped = True
        with suppress(subprocess.TimeoutExpired):
            process.wait(PROCESS_POLL_SECONDS)
    ended, code = read_result(folder), process.returncode
    if ended is not None or stop.signal is not None:
        return ended
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    kind = TrialKilled if code < 0 else TemporaryError if code == TEMPORARY else DiffctlError
    where = "" if log is None else f", see {LOG} there"
    raise kind(f"the trial in {folder} ended with {how}{where}: run the same command to resume it")
