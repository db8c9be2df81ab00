"""What serving reaches: `python -m benchmarks.serving`, some three minutes long, with nothing else running.

The model is of the digits profile's shape with the weights it begins with: what they are costs no time. The
server is a process of its own; its clients are threads here, and keep their connections.

| what | promise on 2 CPU cores |
| --- | --- |
| 32 clients, 1 to 4 images of 5 to 40 steps each, over one such request at a time | ≥ 3 × the images/s |
| one client, 64 images of 50 steps, over the same made offline | ≥ 1 × the images/s |
| start to ready | < 6 s |
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch

from diffusion.config import parse
from diffusion.model.model_file import load_model, save_artefact
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.system.params import read_params

ROOT = Path(__file__).parent.parent
CLIENTS = 32
STEPS = (5, 10, 20, 40)
LARGE = {"num": 64, "steps": 50, "format": "npz"}


class Answered(NamedTuple):
    """How many images came, in how many seconds, and the seconds of each request."""

    images: int
    seconds: float
    each: list[float]

    @property
    def pace(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def __str__(self) -> str:
        cuts = statistics.quantiles(self.each, n=100) if len(self.each) > 1 else self.each * 99
        return f"{self.pace:8.1f} images/s   p50 {cuts[49] * 1000:7.0f} ms   p99 {cuts[98] * 1000:7.0f} ms"


def write_model(path: Path) -> None:
    """A model file of the digits profile's shape."""
    from diffusion.model.network_registry import build_network
    from diffusion.train.plan import plan_training

    config = parse(read_params(ROOT / "profiles/digits.yaml"), "profiles/digits.yaml")
    names = [str(digit) for digit in range(10)]
    meta = {"name": "digits", "classes": names, "counts": [100] * 10, "image_size": 8, "channels": 1}
    artefact = plan_training(config, {**meta, "digest": "0", "options": {}}, torch.device("cpu"))
    save_artefact(path, build_network(artefact.network).state_dict(), artefact)


@contextmanager
def served(model: Path) -> Iterator[tuple[str, float]]:
    """`diffctl serve` of the model: its address, and the seconds from its start until it was ready."""
    command = [sys.executable, "-m", "cli.entry", "serve", "--port", "0", "--model", str(model)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start, see above")
        yield urlsplit(line.split()[1]).netloc, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def request_all(
    clients: int, seconds: float, address: str, request: Callable[[random.Random], Any]
) -> Answered:
    """What so many clients get, each asking again as soon as it is answered."""
    over = threading.Event()
    each: list[float] = []
    images: list[int] = []

    def ask(number: int) -> None:
        draw, connection = random.Random(number), http.client.HTTPConnection(address, timeout=600)
        while not over.is_set():
            wanted, began = request(draw), time.perf_counter()
            body, headers = json.dumps(wanted), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/images", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"the server answered {answer.status}")
            each.append(time.perf_counter() - began)
            images.append(wanted["num"])
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads:
        thread.join()
    return Answered(sum(images), time.perf_counter() - began, each)


def mixed(draw: random.Random) -> dict[str, Any]:
    """A request as many clients send them."""
    return {"num": draw.randint(1, 4), "steps": draw.choice(STEPS), "seed": draw.randrange(1000)}


def offline(model: Path, seconds: float) -> Answered:
    """The large request made in this process, again and again."""
    loaded, settings = load_model(model), SampleSettings(steps=LARGE["steps"])
    indices, each = range(int(LARGE["num"])), []
    condition = mixed_condition(loaded.artefact, settings, indices)
    began = time.perf_counter()
    while not each or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        generate(loaded, settings, indices, condition, torch.device("cpu"))
        each.append(time.perf_counter() - start)
    return Answered(len(indices) * len(each), time.perf_counter() - began, each)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m.safetensors"
        write_model(model)
        alone = offline(model, seconds)
        with served(model) as (address, ready):
            request_all(CLIENTS, 1, address, mixed)  # warm-up
            one = request_all(1, seconds, address, mixed)
            many = request_all(CLIENTS, seconds, address, mixed)
            large = request_all(1, seconds, address, lambda draw: dict(LARGE))
    print(f"start to ready               {ready:8.1f} s")
    print(f"one mixed request at a time  {one}")
    print(f"{CLIENTS} clients of such         {many}   {many.pace / one.pace:.2f} ×")
    print(f"64 images at a time          {large}   {large.pace / alone.pace:.2f} × offline")
    print(f"64 images offline            {alone}")


if __name__ == "__main__":
    main()
