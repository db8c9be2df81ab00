"""Sampling on a real Ray cluster of two nodes: equal images, lost workers, GPUs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from diffusion.config import load
from diffusion.layout import MODEL
from diffusion.protocol.grid import cell_settings, grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import LocalRunner
from diffusion.sample.network_files import NetworkFiles, Recipe
from diffusion.system.errors import DiffctlError
from flows.ray.shard_runner import ray_runner
from tests.conftest import diffctl, start_diffctl
from tests.helpers.networks import assert_equal_but_for_rounding, cell_images, small_model, with_model
from tests.helpers.waiting import wait_until

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SECTIONS = {
    "sample": {"num_images": 48, "batch_size": 4},
    "sweep": {"steps": [30], "eta": [1.0], "sampler": ["ddim", "dpm-solver++"]},
}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The images that one process makes."""
    folder = tmp_path_factory.mktemp("local")
    with_model(folder, **SECTIONS)
    assert diffctl(folder, "stage", "sample").returncode == 0
    return cell_images(folder)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes, two workers each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**{name: value for name, value in node.items() if name != "include_dashboard"})
        yield cluster.address
    finally:
        cluster.shutdown()


def on_ray(folder: Path, address: str | None, **sample: int) -> None:
    section = {**SECTIONS["sample"], "runner": "ray", "address": address, **sample}
    with_model(folder, **{**SECTIONS, "sample": section})


def shards(folder: Path) -> list[Path]:
    return list((folder / "runs/cells").glob("*/*/*.npy"))


def workers() -> list[psutil.Process]:
    """The processes that make a shard at this moment: Ray puts a task's name into its worker's title."""
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if "ray::make_shard" in " ".join(process.info["cmdline"] or ())]


def kill_one_at_work() -> bool:
    """SIGKILL a process that makes a shard; it is halted first, so that it cannot finish it meanwhile."""
    for process in workers():
        process.send_signal(signal.SIGSTOP)
        if process in workers():
            process.kill()
            return True
        process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.long
def test_a_killed_worker_costs_only_its_shard(project: Path, address: str, wanted: dict) -> None:
    on_ray(project, address)
    process = start_diffctl(project, "stage", "sample", env={"RAY_ADDRESS": ""})
    wait_until(lambda: len(shards(project)) >= 2, 120)
    finished = {path: path.stat().st_mtime_ns for path in shards(project)}
    wait_until(kill_one_at_work, 120)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert ["A worker died" in line or "will be retried" in line for line in out.splitlines()] == [True] * 2
    progress = [line.split()[:2] for line in err.splitlines()]
    assert {cell for cell, _ in progress} == set(wanted), "stderr has nothing of Ray"
    assert [cell for cell, done in progress if done == "48/48"] == list(wanted)
    assert len(shards(project)) == 2 * 48 / 4
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "they are not sampled again"
    for name, images in cell_images(project).items():
        assert_equal_but_for_rounding(images, wanted[name])


def test_the_model_is_put_into_the_object_store_once(project, address, wanted, monkeypatch) -> None:
    import ray

    on_ray(project, address)
    config, hidden, put, stored = load(), project / "hidden", ray.put, []
    files, shards = NetworkFiles(MODEL), [range(start, start + 4) for start in (0, 4, 8)]

    def put_and_hide(value: object) -> object:
        stored.append(put(value))
        MODEL.rename(hidden)
        return stored[-1]

    monkeypatch.setattr(ray, "put", put_and_hide)
    with ray_runner(config.sample) as run:
        for cell in grid(config.sample, config.sweep):
            settings = cell_settings(config.sample, cell)
            for shard, images in run(Recipe.read(settings, files), shards):
                assert_equal_but_for_rounding(images, wanted[cell.name][shard.start : shard.stop])
            if hidden.exists():  # the driver looks at it once a cell
                hidden.rename(MODEL)
        assert len(stored) == 1
        monkeypatch.setattr("flows.ray.shard_runner.library_version", lambda: "0123 with torch 1.0")
        with pytest.raises(DiffctlError, match=r"than the driver .*, not 0123 with torch 1\.0"):
            list(run(Recipe.read(settings, files), [range(4)]))


def test_a_guide_is_on_the_workers_too(project: Path, address: str) -> None:
    on_ray(project, address)
    small_model(project / "early.safetensors", seed=1)
    settings = SampleSettings(steps=2, guidance=1.0, guide="early.safetensors")
    files, shards = NetworkFiles(MODEL, Path("early.safetensors")), [range(0, 2), range(2, 4)]
    with LocalRunner() as run:
        wanted = dict(run(Recipe.read(settings, files), shards))
    with ray_runner(load().sample) as run:
        for shard, images in run(Recipe.read(settings, files), shards):
            assert_equal_but_for_rounding(images, wanted[shard])


def test_unreachable_and_too_small_clusters_are_refused_in_one_sentence(project: Path, address: str) -> None:
    on_ray(project, "127.0.0.1:1")
    done = diffctl(project, "stage", "sample")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    on_ray(project, address, num_gpus=1)
    done = diffctl(project, "stage", "sample")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sample.num_gpus" in done.stderr


@pytest.mark.long
def test_local_ray_ends_with_its_driver(project: Path, wanted: dict) -> None:
    on_ray(project, None)
    process = start_diffctl(project, "stage", "sample", env={"RAY_ADDRESS": ""})
    wait_until(lambda: shards(project) != [], 120)
    family = [one for one in psutil.Process(process.pid).children(recursive=True) if is_of_the_work(one)]
    assert {one.name() for one in family} >= {"gcs_server", "raylet"}
    process.kill()
    process.communicate()
    wait_until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family), 60)
    done = diffctl(project, "stage", "sample", env={"RAY_ADDRESS": "", "HOME": str(project)})
    assert done.returncode == 0, done.stderr
    assert not (project / ".ray").exists(), "no token for all Rays to come is left"
    for name, images in cell_images(project).items():
        assert_equal_but_for_rounding(images, wanted[name])


def is_of_the_work(process: psutil.Process) -> bool:
    """Whether it is Ray's server, node or worker: the two agents of a node end a minute or so after it."""
    words = f"{process.name()} {' '.join(process.cmdline()[:3])}"
    return any(name in words for name in ("gcs_server", "raylet", "default_worker.py", "ray::make"))
