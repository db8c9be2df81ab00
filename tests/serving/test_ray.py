"""`diffctl serve --ray`: the same server as replicas on Ray Serve, which leave no process behind."""

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from diffusion.layout import MODEL
from diffusion.protocol.settings import SampleSettings
from diffusion.system.errors import UsageError
from tests.helpers.invoke import assert_refused
from tests.helpers.mlflow_server import empty_database
from tests.helpers.served_images import offline
from tests.helpers.server_process import ServerProcess, small_model, trained
from tests.helpers.waiting import wait_until
from tracking.registry.promotion import Override
from tracking.registry.registered_models import promote, register

pytest.importorskip("ray")

from serving.ray_serve import check_capacity, parse_replicas

NAME = "diffctl-digits"


def test_replicas_are_a_number_or_bounds():
    assert (parse_replicas("3"), parse_replicas("1:4")) == ((3, 3), (1, 4))
    for text in ("", "0", "4:1", "1:2:3", "1:", "1.5", "²", "10000"):
        with pytest.raises(UsageError):
            parse_replicas(text)


@pytest.mark.parametrize(("most", "gpus", "unit"), [(3, 0, "CPU"), (2, 0.6, "GPU")])
def test_more_replicas_than_the_machine_has_room_for_are_refused(most, gpus, unit, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(UsageError, match=f"{unit}s, and this machine has"):
        check_capacity(most, gpus)
    check_capacity(1, 1)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The folder for temporary files: a short path, since Ray puts its sockets there."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def here(project, scratch, monkeypatch) -> Path:
    """A project that is also HOME, to detect files that are left there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setenv("TMPDIR", str(scratch))
    return project


def replicas() -> list[psutil.Process]:
    running, title = psutil.process_iter(["cmdline"]), "ray::ServeReplica:diffctl"
    return [process for process in running if title in " ".join(process.info["cmdline"] or ())]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--replicas", "2"], "--ray"),
        (["--ray", "10.0.0.1:6379", "--host", "0.0.0.0"], "--token-file"),
        (["--ray", "ray://10.0.0.1:10001"], "ray://"),
        (["--ray", "10.0.0.1:6379", "--port", "0"], "--port"),
    ],
)
def test_a_wrong_option_is_one_sentence(here, scratch, invoke, arguments, word):
    small_model(here / MODEL)
    assert_refused(invoke("serve", *arguments), word)
    assert not list(scratch.iterdir())


@pytest.fixture
def two(here) -> Iterator[ServerProcess]:
    """Two replicas of the champion, and a second registered version."""
    empty_database(here / "mlflow.db")
    for seed, kernel in ((1, 0.1), (2, 0.2)):
        trained(seed, kernel)
        register()
    with ServerProcess(here, "--champion", "--poll", "0.2", "--ray", "--replicas", "2") as server:
        yield server


@contextmanager
def clients(count: int, send: Callable[[httpx.Client, int], Any]) -> Iterator[list[Any]]:
    """Send requests from threads until the block ends; a client's results end with the text of an error."""
    over, results = threading.Event(), []

    def run(number: int) -> None:
        with httpx.Client(timeout=120) as client:
            while not over.is_set():
                try:
                    results.append(send(client, number))
                except httpx.HTTPError as error:
                    return results.append((repr(error), ""))
        return None

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.long
def test_two_replicas_follow_the_champion_and_lose_no_request(two, here, scratch):
    assert two.startup_line == f"{NAME}: {two.url}/v1/images (Ctrl-C ends it)\n"
    assert len(replicas()) == 2
    family = psutil.Process(two.process.pid).children(recursive=True)

    def send(client: httpx.Client, number: int) -> tuple[int, str]:
        events = number % 3 == 0
        body = {"num": number % 4 + 1, "steps": 4 + number * 3}
        answer = client.post(f"{two.url}/v1/images{'/events' if events else ''}", json=body)
        if answer.status_code == 200 and events:
            assert answer.text.count("event: images\n") == 1
        return answer.status_code, answer.headers["x-model-version"]

    with clients(6, send) as answers:
        wait_until(lambda: len(answers) >= 20)
        assert {version for _, version in answers} == {"1"}
        assert promote(NAME, 2, Override(force=True, note="the other one")).promoted
        # Each replica looks for itself: 30 answers of version 2 alone are of both.
        wait_until(lambda: [version for _, version in answers[-30:]] == ["2"] * 30)
        assert {status for status, _ in answers} == {200}
        body = {"num": 3, "steps": 5, "format": "npz"}
        made = httpx.post(f"{two.url}/v1/images", json=body, timeout=60)
        (here / "made.npz").write_bytes(made.content)
        with np.load(here / "made.npz") as arrays:
            difference = arrays["arr_0"].astype(int) - offline(MODEL, SampleSettings(steps=5), range(3))
        assert np.abs(difference).max() <= 1
        two.process.send_signal(signal.SIGINT)
        wait_until(lambda: answers[-1][0] != 200 or two.process.poll() is not None)
    assert two.process.wait(60) == 0
    assert {status for status, _ in answers} <= {200, 503}
    assert two.log.read_text() == ""
    assert two.process.stdout is not None
    assert two.process.stdout.read() == "", "stdout has no output of Ray"
    wait_until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family))
    assert not list(scratch.iterdir())
    assert not (here / ".ray").exists()


@pytest.mark.long
def test_token_is_required_disconnects_free_images_and_ray_ends_with_its_server(here):
    small_model(here / MODEL)
    (here / "token").write_text("0123456789abcdefghij")
    with ServerProcess(here, "--ray", "--host", "0.0.0.0", "--token-file", "token") as server:
        family = replicas()
        assert family
        url = f"http://127.0.0.1:{server.port}"
        assert httpx.post(f"{url}/v1/images", json={"steps": 2}).status_code == 401
        known = {"Authorization": "Bearer 0123456789abcdefghij"}
        assert httpx.post(f"{url}/v1/images", json={"steps": 2}, headers=known).status_code == 200
        large = {"num": 64, "steps": 100}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/images", json=large, headers=known, timeout=httpx.Timeout(60, read=0.3))
        wait_until(lambda: server.metric("diffctl_images_held ", known) == 0)
    wait_until(lambda: not any(one.is_running() for one in family))


# `diffctl` with short scaling delays.
IMPATIENT = """
import sys
from serving import ray_serve
ray_serve.UPSCALE_SECONDS = ray_serve.DOWNSCALE_SECONDS = 1.0
from cli.main import main
sys.argv[0] = "diffctl"
main()
"""


@pytest.mark.long
def test_autoscaling_loses_no_request(here):
    small_model(here / MODEL)
    program = [sys.executable, "-c", IMPATIENT]
    server = ServerProcess(here, "--ray", "--replicas", "1:2", "--batch-size", "4", program=program)
    quiet = threading.Event()

    def send(client: httpx.Client, number: int) -> int | None:
        if quiet.is_set() and number:
            time.sleep(0.1)
            return None
        body = {"num": 2, "steps": 5 if quiet.is_set() else 40}
        return client.post(f"{server.url}/v1/images", json=body).status_code

    with server:
        assert len(replicas()) == 1
        with clients(8, send) as statuses:
            wait_until(lambda: len(replicas()) == 2, 120)
            quiet.set()  # but for one client
            wait_until(lambda: len(replicas()) == 1, 120)
            before = statuses.count(200)
            wait_until(lambda: statuses.count(200) > before + 2)
        assert server.stop() == 0
    assert set(statuses) <= {200, None}
    assert server.log.read_text() == ""
