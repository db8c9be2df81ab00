"""What serving reaches: `python -m benchmarks.serving [--seconds S]`, some three minutes long.

The model has the digits profile's shape and its initial weights, whose values cost no time. The server is a
process of its own; its clients are threads here, which keep their connections.

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
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks import ROOT, environment, print_goal, seconds_of
from benchmarks.contenders import CPU, our_sample, random_store
from diffusion.config import load
from diffusion.model.model_file import load_model, save_artefact
from diffusion.model.network_registry import build_network
from diffusion.protocol.settings import SampleSettings
from diffusion.train.plan import plan_training

CLIENTS = 32
STEPS = (5, 10, 20, 40)
LARGE = {"num": 64, "steps": 50, "format": "npz"}


class Measured(NamedTuple):
    """The images that were made, in how many seconds, and the seconds of each request."""

    images: int
    seconds: float
    each: Sequence[float]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def __str__(self) -> str:
        percentiles = statistics.quantiles(self.each, n=100) if len(self.each) > 1 else self.each * 99
        p50, p99 = percentiles[49] * 1000, percentiles[98] * 1000
        return f"{self.rate:8.1f} images/s   p50 {p50:7.0f} ms   p99 {p99:7.0f} ms"


def write_model(path: Path) -> None:
    store = random_store("digits", 1, 8, 1, classes=10)
    artefact = plan_training(load(ROOT / "profiles/digits.yaml"), store.meta, CPU)
    save_artefact(path, build_network(artefact.network).state_dict(), artefact)


@contextmanager
def server(model: Path) -> Iterator[tuple[str, float]]:
    """Yield the address of `diffctl serve` with the model, and the seconds from its start until ready."""
    command = [sys.executable, "-m", "cli.entry", "serve", "--port", "0", "--model", str(model)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
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
    clients: int, seconds: float, address: str, request: Callable[[random.Random], dict[str, Any]]
) -> Measured:
    """Return what so many clients get, each with its next request as soon as the last one is complete."""
    began = time.perf_counter()

    def work(number: int) -> list[tuple[int, float]]:
        draw, connection = random.Random(number), http.client.HTTPConnection(address, timeout=600)
        done = []
        while time.perf_counter() < began + seconds:
            body = request(draw)
            done.append((body["num"], seconds_of(partial(post, connection, body))))
        connection.close()
        return done

    with ThreadPoolExecutor(clients) as pool:
        done = [one for part in pool.map(work, range(clients)) for one in part]
    images, each = zip(*done, strict=True)
    return Measured(sum(images), time.perf_counter() - began, each)


def post(connection: http.client.HTTPConnection, body: dict[str, Any]) -> None:
    connection.request("POST", "/v1/images", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"the server responded with {response.status}")


def mixed(draw: random.Random) -> dict[str, Any]:
    return {"num": draw.randint(1, 4), "steps": draw.choice(STEPS), "seed": draw.randrange(1000)}


def offline(model: Path, seconds: float) -> Measured:
    """Make the images of the large request in this process, again and again."""
    sample = our_sample(load_model(model), SampleSettings(steps=LARGE["steps"]), LARGE["num"], CPU)
    each: list[float] = []
    while not each or sum(each) < seconds:
        each.append(seconds_of(sample))
    return Measured(LARGE["num"] * len(each), sum(each), each)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m.safetensors"
        write_model(model)
        alone = offline(model, seconds)
        with server(model) as (address, ready):
            request_all(CLIENTS, 1, address, mixed)  # warm-up
            one = request_all(1, seconds, address, mixed)
            many = request_all(CLIENTS, seconds, address, mixed)
            large = request_all(1, seconds, address, lambda draw: dict(LARGE))
    rows = {"one mixed request at a time": one, f"{CLIENTS} clients of such": many}
    for what, found in {**rows, "64 images at a time": large, "64 images offline": alone}.items():
        print(f"{what:<28} {found}")
    ratios = (("clients over one", many.rate / one.rate, 3), ("64 over offline", large.rate / alone.rate, 1))
    for what, ratio, goal in ratios:
        print_goal(what, f"{ratio:.2f} ×", f"at least {goal} ×", ratio >= goal)
    print_goal("start to ready", f"{ready:.1f} s", "under 6 s", ready < 6)


if __name__ == "__main__":
    main()
