"""A server under load through all that may come: `python -m benchmarks.soak`, ten minutes long.

32 clients send mixed requests, and some leave; the champion changes twice; the server is stopped by SIGTERM
and started again.

| what | promise |
| --- | --- |
| each request | is answered, or refused by 429 or 503, or nobody listens between SIGTERM and the new start |
| what is left once the clients are gone | no request, no image, no traceback |

The models are small ones with random weights, registered in an MLflow of its own. Every answer must have what
was asked for, of a model that was champion.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import write_params
from tests.helpers.mlflow_server import empty_database
from tests.helpers.served import ServerProcess, trained
from tests.helpers.waiting import wait_until
from tracking.promotion import Hand, promote_version
from tracking.registry import register
from tracking.store import connect

CLIENTS = 32
NAME = "diffctl-digits"
STEPS = (5, 10, 20, 40)
QUEUE = 64  # images: fewer than the clients may ask for together, so that some are refused
OPTIONS = ("--champion", "--poll", "0.5", "--queue", str(QUEUE))
FORMATS = {"json": 5, "grid": 1, "npz": 1, "events": 2, "wrong": 1}  # how often each is asked for
LEAVES = 0.1  # the share of clients that leave before they are answered
REFUSED = {429, 503}
NOBODY = "nobody listened"
LONG = True  # not among what `python -m benchmarks` runs


class Soak:
    """Clients of a server that may be another one by the next request, and what they were told."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self.server = ServerProcess(folder, *OPTIONS)
        self.over, self.away = threading.Event(), threading.Event()
        self.told: Counter[str] = Counter()
        self.lost: list[str] = []

    def ask(self, number: int) -> None:
        """Ask again and again, as one client."""
        draw = random.Random(number)
        with httpx.Client(timeout=120) as client:
            while not self.over.is_set():
                kind = draw.choices(list(FORMATS), list(FORMATS.values()))[0]
                leaves = draw.random() < LEAVES
                patience = 10 ** draw.uniform(-3, -0.5) if leaves else None
                told, wrong = self._one(client, draw, kind, patience)
                self._note(told, wrong)
                if told.endswith(("429", "503", NOBODY)):
                    self.over.wait(draw.random())

    def _one(
        self, client: httpx.Client, draw: random.Random, kind: str, patience: float | None
    ) -> tuple[str, str | None]:
        """One request: what came of it, and what is wrong with that."""
        wanted = {"num": draw.randint(1, 4), "steps": draw.choice(STEPS), "seed": draw.randrange(1000)}
        path = "/v1/images/events" if kind == "events" else "/v1/images"
        asked = {**wanted, **_form(kind)}
        was_away = self.away.is_set()
        try:
            answer = client.post(f"{self.server.url}{path}", json=asked, timeout=patience or 120)
        except httpx.TimeoutException:
            return "left", None if patience else f"{kind}: no answer in 120 s"
        except httpx.ConnectError as error:
            return NOBODY, None if was_away or self.away.is_set() else repr(error)
        except httpx.HTTPError as error:
            return "broke off", repr(error)
        return f"{kind} {answer.status_code}", _wrong(kind, wanted["num"], answer)

    def _note(self, what: str, wrong: str | None) -> None:
        with self._lock:
            self.told[what] += 1
            if wrong is not None:
                self.lost.append(f"{time.strftime('%H:%M:%S')} {what}: {wrong}")

    def restart(self) -> None:
        """Stop the server by SIGTERM in the midst of all, and start another."""
        self.away.set()
        code = self.server.stop()
        self._look_at_log()
        if code:
            self.lost.append(f"SIGTERM: exit code {code}")
        self.server = ServerProcess(self._folder, *OPTIONS)
        self.away.clear()

    def end(self) -> None:
        """Once no client is left: nothing is at work, and the server stops."""
        held, active = "diffctl_images_held ", "diffctl_requests_active "
        wait_until(lambda: self._metric(held) == 0 and self._metric(active) == 1)  # 1: who asks for it
        if code := self.server.stop():
            self.lost.append(f"SIGTERM: exit code {code}")
        self._look_at_log()

    def _metric(self, name: str) -> float:
        lines = httpx.get(f"{self.server.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def _look_at_log(self) -> None:
        said = self.server.log.read_text().splitlines()
        self.lost += [line for line in said if not line.endswith("serves now")]


def _form(kind: str) -> dict[str, Any]:
    """What a kind of request has beside its settings."""
    if kind == "events":
        return {"every": 5}
    return {"steps": 0} if kind == "wrong" else {"format": kind}


def _wrong(kind: str, num: int, answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    if answer.status_code in REFUSED:
        says_when = answer.status_code != 429 or "retry-after" in answer.headers
        return None if says_when and "detail" in answer.json() else "a refusal that does not explain itself"
    if kind == "wrong":
        return None if answer.status_code == 422 else f"{answer.status_code} instead of 422"
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    if answer.headers["x-model-version"] not in ("1", "2"):
        return f"of version {answer.headers['x-model-version']}"
    if kind == "json" and len(answer.json()["images"]) != num:
        return f"{len(answer.json()['images'])} images instead of {num}"
    if kind == "events":
        *_, last = answer.text.strip().split("\n\n")
        name, data = (line.partition(": ")[2] for line in last.splitlines())
        told_to_stop = name == "error" and "server stopped" in data
        if not told_to_stop and (name != "images" or len(json.loads(data)["images"]) != num):
            return f"the last event is {name}: {data[:200]}"
    return None


def run(folder: Path, seconds: float, clients: int = CLIENTS) -> Soak:
    """The whole of it in a folder of its own, which becomes the working directory."""
    os.chdir(folder)
    write_params(folder)
    empty_database(folder / "mlflow.db")
    for version, kernel in ((1, 0.1), (2, 0.2)):
        trained(version, kernel)
        register()
    soak = Soak(folder)
    threads = [threading.Thread(target=soak.ask, args=(number,)) for number in range(clients)]
    try:
        for thread in threads:
            thread.start()
        for act in (lambda: _crown(2), soak.restart, lambda: _crown(1), lambda: None):
            time.sleep(seconds / 4)
            act()
        soak.over.set()
        for thread in threads:
            thread.join()
        soak.end()
    finally:
        soak.over.set()
        soak.server.kill()
    return soak


def _crown(version: int) -> None:
    assert promote_version(connect(), NAME, version, Hand(force=True, note="soak")).promoted


def main() -> None:
    """Print what the clients were told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        soak = run(Path(folder), 60 * minutes)
    for what, count in sorted(soak.told.items()):
        print(f"{count:8,}  {what}")
    if soak.lost:
        sys.exit("\n".join(soak.lost))
    print(f"{soak.told.total():,} requests in {minutes:g} minutes: none is lost, and nothing is left")


if __name__ == "__main__":
    main()
