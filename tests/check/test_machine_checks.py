"""Whether a training fits the machine: memory of each process, and space on each disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.check import check, findings, machine_checks, preflight
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import STATE_BYTES, check_disk
from diffusion.config import Config, load
from diffusion.layout import MODEL, SAMPLES, TRAIN_RUNS
from diffusion.model.counted_passes import count_parameters
from diffusion.model.model_file import save_artefact
from diffusion.protocol.grid import grid
from diffusion.sample.cell_images import make_cell
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.devices import DEVICE_VARIABLE
from diffusion.system.errors import UsageError
from diffusion.train.initial_state import new_state
from diffusion.train.plan import TrainPlan, plan_artefact, training_fingerprint
from diffusion.train.step_memory import step_bytes
from tests.helpers.checks import configuration
from tests.helpers.prepared import copy_data

GPU = torch.device("cuda")
WHOLE_BATCH = {"loss": "contrastive", "variance": "small"}


def found(config: Config, subject: str) -> Finding:
    (finding,) = (one for one in check(config) if one.subject == subject)
    return finding


def plan_here(config: Config) -> TrainPlan:
    plan = Project(config).plan
    assert plan is not None
    return plan


def estimate(images: int) -> int:
    """Return the estimated bytes of a training step."""
    return step_bytes(plan_here(configuration()).network, images)


def memory_of(
    monkeypatch: pytest.MonkeyPatch, total: float, process: dict[str, Any] | None = None, **train: Any
) -> Finding:
    """Return the finding on a GPU with `total` bytes."""
    config = configuration(train={"microbatch": None, "batch_size": 64, **train}, process=process or {})
    with monkeypatch.context() as patch:
        for module in (machine_checks, findings):
            patch.setattr(module, "default_device", lambda: GPU)
        patch.setattr(machine_checks.step_memory, "device_memory", lambda device: (int(total), int(total)))
        return next(machine_checks.check_memory(Project(config)))


@pytest.mark.parametrize(
    ("precision", "total", "level"),
    [  # in units of the estimate for 16 images
        ("bf16", 0.6, "ok"),
        ("bf16", 0.45, "error"),
        ("fp32", 1.1, "ok"),
        ("fp32", 0.6, "warning"),
        ("fp32", 0.45, "error"),
    ],
)
@pytest.mark.parametrize("microbatch", [None, 40])
def test_memory_is_per_process_and_half_in_bf16(monkeypatch, precision, total, level, microbatch) -> None:
    shard = estimate(16)
    finding = memory_of(monkeypatch, total * shard, precision=precision, devices=4, microbatch=microbatch)
    assert finding.level == level
    assert "a step of 16 images" in finding.message
    assert "in each of 4 processes" in finding.message


@pytest.mark.parametrize(("precision", "part"), [("bf16", 0.5), ("fp32", 1.0)])
def test_auto_microbatch_always_fits(monkeypatch: pytest.MonkeyPatch, precision: str, part: float) -> None:
    total = estimate(32) * 0.7
    images = next(size for size in (64, 32, 16, 8) if part * estimate(size) < 0.8 * total)
    finding = memory_of(monkeypatch, total, precision=precision, microbatch="auto")
    assert finding.level == "ok"
    assert f"a step of {images} images" in finding.message


def test_a_loss_of_the_whole_batch_has_neither_micro_batches_nor_several_processes(monkeypatch) -> None:
    finding = memory_of(monkeypatch, estimate(64) * 0.7, WHOLE_BATCH, precision="fp32", microbatch="auto")
    assert finding.level == "warning"
    assert "a step of 64 images" in finding.message
    assert finding.remedy.startswith("lower train.batch_size")
    monkeypatch.setattr(machine_checks, "world_size", lambda train: (2, 2))
    finding = memory_of(monkeypatch, estimate(64) * 2, WHOLE_BATCH, precision="fp32")
    assert (finding.level, finding.remedy) == ("error", "set train.devices to 1")
    assert "process.loss contrastive needs the whole batch" in finding.message


@pytest.mark.parametrize(
    ("device", "train", "rounding"),
    [
        ("cpu", {"precision": "bf16"}, "bf16"),
        ("cpu", {"precision": "fp32"}, None),
        ("cuda", {"precision": "fp32"}, "tf32"),
        ("cuda", {"precision": "fp32", "tf32": False}, None),
    ],
)
def test_rounding_of_a_consistency_training_is_a_warning(monkeypatch, device, train, rounding) -> None:
    monkeypatch.setattr(machine_checks, "default_device", lambda: torch.device(device))
    for loss, expected in (("consistency", rounding), ("simple", None)):
        config = configuration(train=train, process={"loss": loss, "variance": "small"})
        warned = [one.message for one in machine_checks.check_precision(Project(config))]
        assert [message.split()[0] for message in warned] == [expected] * (expected is not None)


def test_sharding_is_suggested_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plan_here(configuration()).network
    whole, shard = (step_bytes(network, 1, shards=shards) for shards in (1, 4))
    assert shard < whole
    options = {"precision": "fp32", "devices": 4, "batch_size": 4}
    cases = [(whole, False, "ok"), (shard, False, "warning")]
    cases += [(shard, True, "ok"), (shard - 1, True, "warning")]
    for total, sharded, level in cases:
        finding = memory_of(monkeypatch, total, **options, shard=sharded)
        assert finding.level == level
        assert (", in 4 shards; a step of 1 images" in finding.message) == sharded
        assert ("train.shard: true" in finding.remedy) == (level == "warning" and not sharded)


def test_too_many_processes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    few = configuration(train={"batch_size": 8, "devices": 9})
    assert "less than the 9 processes" in found(few, "devices").message
    monkeypatch.delenv(DEVICE_VARIABLE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="and there are 2 GPUs"):
        machine_checks.world_size(configuration(train={"devices": 3}).train)


@pytest.fixture
def another_disk(project: Path) -> Iterator[Path]:
    """Put the project's runs/ on another disk."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == project.stat().st_dev:
        pytest.skip("there is no second disk")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    (project / "runs").symlink_to(folder)
    yield folder
    shutil.rmtree(folder)


def with_room(monkeypatch: pytest.MonkeyPatch, free: float, disk: Path = Path()) -> None:
    """Pretend that `free` bytes are free on that folder's disk, and plenty on others."""
    usage, device = shutil.disk_usage, disk.stat().st_dev

    def pretended(folder: Path) -> Any:
        on_it = Path(folder).stat().st_dev == device
        return usage(folder)._replace(free=int(free) if on_it else 10**15)

    monkeypatch.setattr(shutil, "disk_usage", pretended)


def test_saved_states_reduce_the_needed_space(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_data(project)
    config = load()
    plan = plan_here(config)
    state = STATE_BYTES * count_parameters(plan.network)
    with_room(monkeypatch, 1.6 * state)
    with pytest.raises(UsageError, match=r"more are needed \(training .* are free"):
        preflight(config, "train")
    folder = TRAIN_RUNS / training_fingerprint(plan)
    folder.mkdir(parents=True)
    for step in (4, 8):
        (folder / f"state-{step:09d}.sealed").write_bytes(bytes(state))
    preflight(config, "train")
    assert found(config, "training").message.startswith("resumes after step 8 of 12")


def test_each_disk_is_checked_for_its_own_part(another_disk: Path, project: Path, monkeypatch) -> None:
    copy_data(project)
    config = load()
    with_room(monkeypatch, 10, Path())
    disks = list(check(config, (check_disk,)))
    assert {one.message.rpartition(" ")[2]: one.level for one in disks} == {"runs": "ok", ".": "error"}
    monkeypatch.undo()
    monkeypatch.chdir(project)
    with_room(monkeypatch, 10, another_disk)
    with pytest.raises(UsageError, match="are free in runs"):
        preflight(config, "train")


def needed_for_samples(config: Config) -> int:
    return int(found(config, "disk").message.partition("samples ")[2].partition(" B")[0])


@pytest.mark.slow
def test_finished_samples_reduce_the_needed_space(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_data(project)
    monkeypatch.setattr(machine_checks, "format_bytes", lambda size: f"{size} B")
    small = {"sample": {"num_images": 40}, "sweep": {"steps": [1, 2], "eta": [0.0]}}
    config, cell = configuration(**small), 40 * 64
    assert needed_for_samples(config) == 3 * 2 * cell
    plan = plan_here(config)
    save_artefact(MODEL, new_state(plan, torch.device("cpu")).ema.state_dict(), plan_artefact(plan))
    first, second = grid(config.sample, config.sweep)
    make_cell(config.sample, first, NetworkFiles(MODEL), SAMPLES / first.name)
    assert needed_for_samples(config) == 3 * cell
    make_cell(config.sample, second, NetworkFiles(MODEL), SAMPLES / second.name)
    assert needed_for_samples(config) == 0
    assert needed_for_samples(configuration(**small, train={"lr": 0.1})) == 6 * cell
    MODEL.write_bytes(b"no model")
    assert needed_for_samples(config) == 6 * cell
