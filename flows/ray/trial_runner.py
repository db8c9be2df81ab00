"""A search's trials on Ray workers: on all devices of this machine, or on a cluster (`search --ray`).

A trial's state, model and scores lie in the project's folder, which all machines share. A worker that dies
takes its trial's process with it, and another one goes on from the trial's saved state.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.code_digest import library_version
from diffusion.search.folder import ABOUT, About, read_ended, trial_folder
from diffusion.search.trial import Ended, Trial
from diffusion.system.checksums import read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.signals import StopRequest, stop_request
from flows.ray.ray_session import first_line, ray_session
from flows.trial_process import TrialKilled, run_process

RETRIES = 3  # of a trial whose worker or process was killed
POLL_SECONDS = 0.5
LOG = "trial.log"  # in a trial's folder: what its process says
SENT = ("MLFLOW_", "DIFFCTL_CACHE", "DIFFCTL_DEVICE", "OMP_NUM_THREADS")  # how variables begin
DEVICE, THREADS = "DIFFCTL_DEVICE", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class TrialResources:
    """What is asked for: `at_once` trials at most, None all that Ray has room for.

    Each has `cpus` cores, and `devices` GPUs where Ray has any.
    """

    at_once: int | None = None
    cpus: int = 1
    devices: int = 1


@dataclass(frozen=True)
class TrialSpec:
    """What all trials have in common on their workers: the search by folder and key, its command, variables.

    `command` are the arguments of Python before the trial's folder, `project` is the working directory.
    """

    project: Path
    search: Path
    key: str
    version: str
    command: tuple[str, ...]
    variables: dict[str, str]
    cpus: int


class RayTrials:
    """A Runner of diffusion.search.driver. `begin` may say that a trial has ended before it is made.

    `told` hears how each ended. What either raises ends the search.
    """

    def __init__(
        self,
        task: TrialSpec,
        resources: dict[str, int],
        at_once: int | None,
        stop: StopRequest,
        begin: Callable[[Trial], Ended | None],
        told: Callable[[int, Ended], None],
    ) -> None:
        import ray

        self._task, self._resources, self._at_once, self._stop = task, resources, at_once, stop
        self._begin, self._told = begin, told
        self._make = ray.remote(run_trial).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_retries=RETRIES,
            retry_exceptions=[TrialKilled],
        )
        self._running: dict[Any, int] = {}
        self._over: list[tuple[int, Ended]] = []

    def room(self) -> int:
        """As many as Ray's machines have room for, within what is asked for."""
        room = max(1, _places(self._resources))  # where no machine is left, it waits for one
        return room if self._at_once is None else min(room, self._at_once)

    def start(self, trial: Trial) -> None:
        """Hand the trial to Ray."""
        if (ended := self._begin(trial)) is not None:
            self._over.append((trial.number, ended))
        else:
            self._running[self._make.remote(self._task, trial.number)] = trial.number

    def ended(self) -> list[tuple[int, Ended]]:
        """Those that ended; Interrupted on a signal. DiffctlError for one that did not come to its end."""
        import ray

        if not self._over:
            ready = ray.wait(list(self._running), timeout=POLL_SECONDS)[0]
            self._stop.raise_if_set()  # before the end of a trial that the same Ctrl-C has reached
            for reference in ready:
                number = self._running.pop(reference)
                self._over.append((number, _result(reference, number, self._task)))
        over, self._over = self._over, []
        for number, ended in over:
            self._told(number, ended)
        return over

    def end(self) -> None:
        """Have all trials save and end, and wait for them."""
        import ray

        with suppress(ray.exceptions.RayError, ConnectionError):  # a cluster that is gone has none at work
            for reference in self._running:
                ray.cancel(reference, force=False)
            left = list(self._running)
            while left:
                left = ray.wait(left, timeout=POLL_SECONDS)[1]


@contextmanager
def ray_trials(
    address: str | None,
    needs: TrialResources,
    search: Path,
    command: Sequence[str],
    begin: Callable[[Trial], Ended | None],
    told: Callable[[int, Ended], None],
) -> Iterator[RayTrials]:
    """A Runner for the trials in the folder `search` of this project; no trial outlives the block.

    `command` as in Task, the others as of RayTrials. UsageError when Ray is not installed or no machine of
    its has what a trial needs; DiffctlError when the cluster does not answer. What Ray prints goes to stderr.
    """
    about = read_checksummed_json(search / ABOUT, About)
    variables = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
    task = TrialSpec(Path.cwd(), search, about.key, library_version(), tuple(command), variables, needs.cpus)
    with (
        redirect_stdout(sys.stderr),
        ray_session(address, "search --ray needs Ray: pip install 'diffctl[ray]'"),
    ):
        resources = _of_each(needs, variables.get(DEVICE))
        with stop_request() as stop:  # an exception from a signal's handler may be lost inside Ray
            trials = RayTrials(task, resources, needs.at_once, stop, begin, told)
            try:
                yield trials
            finally:
                trials.end()


def _of_each(needs: TrialResources, device: str | None) -> dict[str, int]:
    """What Ray is asked for for a trial, by Ray's names; UsageError where no machine has that."""
    import ray

    resources = {"CPU": needs.cpus}
    if device != "cpu" and ray.cluster_resources().get("GPU", 0):  # type: ignore[no-untyped-call]
        resources["GPU"] = needs.devices
    if not _places(resources):
        asked = " and ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in resources.items())
        raise UsageError(f"a trial is to have {asked} of one machine, and no machine of Ray's has as many")
    return resources


def _places(resources: dict[str, int]) -> int:
    """How many trials with such resources find room on the machines that Ray has at this moment."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return count_slots(machines, resources)


def count_slots(machines: Sequence[dict[str, float]], resources: dict[str, int]) -> int:
    """How often the resources are there: all of them on one machine each time."""
    return sum(
        min(int(machine.get(name, 0) // count) for name, count in resources.items()) for machine in machines
    )


def _result(reference: Any, number: int, task: TrialSpec) -> Ended:
    import ray

    folder = trial_folder(task.search, number)
    try:
        ended: Ended | None = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DiffctlError):
            raise error.cause from None
        raise DiffctlError(f"the trial in {folder} failed: {reason(error.cause)}") from None
    except ray.exceptions.RayError as error:
        raise DiffctlError(
            f"the trial in {folder} was lost after {RETRIES} retries ({first_line(error)}): the same "
            "command goes on with it"
        ) from None
    if ended is None:
        raise DiffctlError(f"the trial in {folder} was stopped: the same command goes on with it")
    return ended


# What runs on a worker.


def run_trial(task: TrialSpec, number: int) -> Ended | None:
    """Make a trial, or go on with it; None where Ray was asked to cancel it, after it saved.

    DiffctlError where this machine has another diffctl, or not the project's folder; else as `run_process`.
    """
    _refuse_other(task)
    folder = trial_folder(task.search, number)
    if (ended := read_ended(task.project / folder)) is not None:
        return ended  # the worker before was lost as soon as it had made it
    own = {name: value for name, value in os.environ.items() if not name.startswith(SENT)}
    variables = {THREADS: str(task.cpus)} | task.variables
    with stop_request() as stop, open(task.project / folder / LOG, "ab") as log:
        ended = run_process(
            [sys.executable, *task.command, str(folder)],
            task.project / folder,
            stop,
            cwd=task.project,
            env=own | variables,
            log=log,
        )
        if ended is None and stop.signal != signal.SIGINT:  # by which Ray cancels
            raise TrialKilled(f"the worker of the trial in {folder} was told to end")
    return ended


def _refuse_other(task: TrialSpec) -> None:
    """DiffctlError where this machine has not the same code and the same folder as the driver."""
    host = socket.gethostname()
    if (own := library_version()) != task.version:
        raise DiffctlError(
            f"{host} has another diffctl or torch than this machine ({own}, not {task.version}): install "
            "the same on both"
        )
    try:
        is_there = read_checksummed_json(task.project / task.search / ABOUT, About).key == task.key
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    if not is_there:
        raise DiffctlError(
            f"{host} does not have {task.project / task.search}: the machines of a search share the "
            "project's folder, at one place on all of them (docs/search.md)"
        )
