"""What a training costs besides its network: `python -m benchmarks.training [NAME…] [--small]`.

Without a NAME all are measured, the first three with the digits profile.

| NAME | what | promise on 2 CPU cores |
| --- | --- | --- |
| `observers` | saving, the spool, heartbeats and system metrics by default | under 1% of a training |
| `outage` | a step with MLflow dead or hung all the while | as long as with a live one |
| `first` | from the start of the process to its first step's end, whatever it starts from | under 10 s |
| `loop` | data, noise, loss, clipping, optimiser, EMA and logging | under 5% of a step of cifar10 |

`loop` runs the real loop and spool with a placeholder network, which computes nothing but has the parameters
and gradients: the difference of two long steps would be lost in their variation.
"""

import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import call_apart, environment, print_goal, run, run_measures, write_params
from benchmarks.contenders import CPU, profile_plan, step_seconds
from cli.main import main as diffctl_main
from cli.stages.observers import TrackedTraining
from diffusion.layout import MODEL
from diffusion.model.unet import UNet
from diffusion.train import trainer
from diffusion.train.checkpoint.run_record import HEARTBEAT
from diffusion.train.initial_state import new_state
from diffusion.train.pretrained import store_pretrained
from tracking.spool.event_log import Spool

STAGE = (sys.executable, "-m", "cli.entry", "stage")
ROUNDS = 3  # of trainings with each state of the server, in turn, and with each kind of first step
ENDLESS = 10**6  # steps
SHORT = 10  # steps of a training that a longer one resumes from
STATES = "runs/train/*/state-*.sealed"


def observers(small: bool) -> None:
    """Print the share of each call of the observers in the training's time without previews."""
    with project(steps=60 if small else 1000) as folder:
        spent: dict[str, float] = json.loads(call_apart(folder, "training", "timed_training()"))
    total = spent.pop("train") - spent.pop("preview", 0.0)
    for name, seconds in spent.items():
        print(f"{name:<12} {seconds / total:8.3%} of training")
    share = sum(spent.values()) / total
    print_goal("observers together", f"{share:.3%}", "under 1%", share < 0.01)


def timed_training() -> str:
    """Run `diffctl stage train`; return the seconds of the training and of its observer's calls as JSON."""
    spent: dict[str, float] = {}

    def time_calls(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*arguments)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, name, outer)

    time_calls(trainer, "train")
    for name in ("save", "metrics", "progress", "preview"):
        time_calls(TrackedTraining, name)
    sys.argv = ["diffctl", "stage", "train"]
    try:
        diffctl_main()
    except SystemExit as end:
        if end.code:
            raise
    return json.dumps(spent)


def outage(small: bool) -> None:
    """Print median milliseconds a step with MLflow alive, dead and hung, in turn."""
    steps, seeds = 60 if small else 300, itertools.count(1)
    times: dict[str, list[float]] = {"alive": [], "dead": [], "hung": []}
    with project() as folder, hung_server() as hung:
        uris = {"alive": "", "dead": "http://127.0.0.1:9", "hung": hung}
        for state in [*times] * (1 if small else ROUNDS):
            write_params(folder, train={"steps": steps, "seed": next(seeds), "preview_every": steps})
            output = run(folder, *STAGE, "train", MLFLOW_TRACKING_URI=uris[state])
            took = re.search(rf"train {steps:,}/{steps:,} .*took ([\d.]+) s", output)
            assert took, output
            times[state].append(1000 * float(took[1]) / steps)
    for state, milliseconds in times.items():
        print(f"a step, MLflow {state:<6} {statistics.median(milliseconds):8.2f} ms", flush=True)


@contextmanager
def hung_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never responds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def first(small: bool) -> None:
    """Print the longest of the seconds from a process's start to its first step's end."""
    kinds: dict[str, Callable[[Path, int], None]] = {
        "scratch": lambda folder, seed: write_params(folder, train={"seed": seed}),
        "a shorter training": prepare_shorter,  # its model is the next one's pretrained weights
        "pretrained weights": prepare_pretrained,
        "the state at SIGKILL": prepare_killed,
    }
    resuming = ("a shorter training", "the state at SIGKILL")
    with project() as folder:
        for number, (kind, prepare) in enumerate(kinds.items()):
            longest = 0.0
            for turn in range(1 if small else ROUNDS):
                prepare(folder, 10 * number + turn)
                with training_process(folder) as (seconds, step):
                    longest = max(longest, seconds)
                    assert (step > SHORT) == (kind in resuming), f"step {step} from {kind}"
            print_goal(f"first step from {kind}", f"{longest:.2f} s at most", "under 10 s", longest < 10)


def prepare_shorter(folder: Path, seed: int) -> None:
    """Complete a training under a constant learning rate, then configure a longer one."""
    write_params(folder, train={"seed": seed, "steps": SHORT, "lr": 0.002})
    run(folder, *STAGE, "train")
    write_params(folder, train={"seed": seed, "steps": ENDLESS, "lr": 0.002})


def prepare_pretrained(folder: Path, seed: int) -> None:
    """Configure a training that starts from the weights of the last model."""
    with chdir(folder):
        model = store_pretrained(MODEL)[1]
    write_params(folder, train={"seed": seed, "init_from": {"sha256": model.model_sha256}})


def prepare_killed(folder: Path, seed: int) -> None:
    """Start a training and kill it after its first save."""
    write_params(folder, train={"seed": seed, "steps": ENDLESS, "save_every": SHORT, "lr": 0.002})
    saved = set(folder.glob(STATES))
    with training_process(folder):
        while set(folder.glob(STATES)) <= saved:
            time.sleep(0.01)


@contextmanager
def training_process(folder: Path) -> Iterator[tuple[float, int]]:
    """Yield a training's seconds from its start to its first step's end, and the step; kill it at the end."""
    began = time.perf_counter()
    command, quiet = (*STAGE, "train"), subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=quiet)
    try:
        step = first_step(process, folder)
        yield time.perf_counter() - began, step
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def first_step(process: "subprocess.Popen[bytes]", folder: Path) -> int:
    """Wait for the process's first heartbeat, which is that of its first step; return the step."""
    while process.poll() is None:
        for heartbeat in folder.glob(f"runs/train/*/{HEARTBEAT}"):
            beat = json.loads(heartbeat.read_text(encoding="utf-8"))
            if beat["pid"] == process.pid and beat["step"]:
                return int(beat["step"])
        time.sleep(0.005)
    sys.exit(f"the training ended by itself (exit {process.returncode})")


@contextmanager
def project(**train: Any) -> Iterator[Path]:
    """Yield a folder with the prepared digits and these settings of `train`."""
    # The sender of a killed training is still running and may create files.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_params(folder, train=train)
        run(folder, *STAGE, "data")
        yield folder


class Placeholder(nn.Module):
    """A network without work, whose backward pass gives the parameters of a real one gradients.

    On the meta device it is the real one, from whose inputs the sizes of dropout masks follow.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network, self.channels = network, network.spec.out_channels

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Repeat the input: (B, C, H, W) → (B, C or 2C, H, W)."""
        if x.is_meta:
            return self.network(x, t, labels)
        output = x.repeat(1, self.channels // x.shape[1], 1, 1).requires_grad_()
        output.register_hook(self.add_gradients)
        return output

    def add_gradients(self, upstream: Tensor) -> None:
        """Add a small gradient to every parameter's."""
        for parameter in self.network.parameters():
            gradient = torch.full_like(parameter, 1e-3)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def loop(small: bool) -> None:
    """Print the share of the loop around the network in a step."""
    changes = {"batch_size": 2, "microbatch": 2} if small else {"microbatch": 32}
    seconds = {}
    for is_placeholder, steps in ((True, 12), (False, 2)):
        plan, store = profile_plan("cifar10", CPU, 50_000, steps=steps, log_every=1, **changes)
        state = new_state(plan, CPU)
        if is_placeholder:
            state.network = Placeholder(state.network)  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder), "benchmark", "benchmark", "benchmark")
            seconds[is_placeholder] = step_seconds(state, store, CPU, log=spool.metrics)
    figure = f"{seconds[True] * 1e3:.0f} ms of {seconds[False]:.2f} s ({plan.precision})"
    share = seconds[True] / seconds[False]
    print_goal("loop around the network", f"{figure}, {share:.2%}", "under 5%", share < 0.05)


def main() -> None:
    run_measures({"observers": observers, "outage": outage, "first": first, "loop": loop})


if __name__ == "__main__":
    main()
