"""Fixtures of small real projects: digits, a small network, the command line. Hypothesis profiles."""

import atexit
import contextlib
import copy
import functools
import os
import shutil
import sqlite3
import tempfile
from typing import Any

# Tests run in parallel: one thread each, set before anything loads torch.
os.environ["OMP_NUM_THREADS"] = "1"
# On the CPU on every machine, as CI: those of tests/gpu name their device.
os.environ["DIFFCTL_DEVICE"] = "cpu"
# Parallel processes that compile the same network may read incomplete files: each has its own cache.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="diffctl-inductor-")
# Tests must not use the cache of the user who runs them.
os.environ["DIFFCTL_CACHE"] = tempfile.mkdtemp(prefix="diffctl-cache-")
for name in ("TORCHINDUCTOR_CACHE_DIR", "DIFFCTL_CACHE"):
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from diffusion.layout import MARK
from diffusion.project import load_project
from diffusion.version import VERSION
from tests.helpers.browser import browser  # noqa: F401 (a fixture)
from tests.helpers.disks import mount  # noqa: F401 (a fixture)
from tests.helpers.hub_server import hub  # noqa: F401 (a fixture)
from tests.helpers.invoke import invoke  # noqa: F401 (a fixture)
from tests.helpers.prefect_home import prefect_database  # noqa: F401 (a fixture)

ROOT = Path(__file__).parent.parent
load_project(ROOT)

# `make test` runs the fast profile, `make test-properties` the thorough one. tests/gpu needs neither.
if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    ALWAYS: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    }
    settings.register_profile("fast", max_examples=20, **ALWAYS)
    settings.register_profile("thorough", max_examples=300, **ALWAYS)
    settings.load_profile("fast")


def _connect_unsynced(*arguments: Any, **options: Any) -> sqlite3.Connection:
    """Replace sqlite3.connect: commits do not wait for the disk."""
    connection: sqlite3.Connection = _connect(*arguments, **options)
    with contextlib.suppress(sqlite3.DatabaseError):
        connection.execute("PRAGMA synchronous = OFF")
    return connection


# No test simulates a power failure of this process, so it need not sync. Child processes do.
_connect = sqlite3.connect
os.fsync = lambda handle: None
sqlite3.connect = sqlite3.dbapi2.connect = _connect_unsynced  # type: ignore[attr-defined, assignment]

SMALL: dict[str, dict[str, Any]] = {  # profiles/digits.yaml reduced, so that a stage takes a second or two
    "model": {"channels": 8, "attention_resolutions": [4], "head_channels": 8},
    "train": {
        "steps": 12,
        "batch_size": 8,
        "save_every": 4,
        "log_every": 3,
        "preview_every": 6,
        "lr": {"schedule": "cosine", "rate": 0.002, "warmup": 4},
    },
    "sample": {"num_images": 20, "batch_size": 8},
    "sweep": {"steps": [2, 3], "eta": [0.0, 1.0]},
}


@functools.cache
def _digits() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "profiles/digits.yaml").read_text())
    return values


def params(**changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the small digits profile, updated by the sections in `changes`.

    A continuous process has no other field of the profile.
    """
    values = copy.deepcopy(_digits())
    for overlay in (SMALL, changes):
        for section, keys in overlay.items():
            is_another_network = section == "model" and "name" in keys  # with other options
            values[section] = {**({} if is_another_network else values.get(section, {})), **keys}
    if values["process"]["schedule"] in ("edm", "flow"):
        values["process"] = changes["process"]
    return values


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` without a GPU. Seed torch, so that draws do not depend on earlier tests."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small params.yaml as the working directory; MLflow's store is inside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MARK).parent.mkdir()
    (tmp_path / MARK).write_text(f"version: {VERSION}\n")
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    write_params(tmp_path)
    return tmp_path


def write_params(folder: Path, **changes: dict[str, Any]) -> None:
    """Write a small params.yaml into the folder."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params(**changes)))


def run_python(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the folder and wait for it."""
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=environment(env), capture_output=True, text=True, timeout=600)


def diffctl(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command in the folder and wait for it."""
    return run_python(folder, "-m", "cli.entry", *arguments, env=env)


def start_python(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, stderr: int = subprocess.PIPE
) -> "subprocess.Popen[str]":
    """Start Python with these arguments in the folder, in its own session, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def start_diffctl(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start the real command in the folder as `start_python` does."""
    return start_python(folder, "-m", "cli.entry", *arguments, env=env)


def command(*arguments: str) -> list[str]:
    """Return the diffctl command line with this interpreter."""
    return [sys.executable, "-m", "cli.entry", *arguments]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with one thread, updated by `extra`."""
    return {**os.environ, **(extra or {})}


@pytest.fixture(scope="session")
def digits_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of 64 digits, copied by each test."""
    from tests.helpers.digits_sweep import write_prepared

    return write_prepared(tmp_path_factory.mktemp("digits"), train=64) / "train"


@pytest.fixture
def digits_store(digits_template: Path, tmp_path: Path) -> Path:
    """A prepared store of 64 digits."""
    return shutil.copytree(digits_template, tmp_path / "store")


@pytest.fixture
def store(digits_store: Path) -> Any:
    """The opened store of 64 digits."""
    from diffusion.images.store import open_store

    return open_store(digits_store)
