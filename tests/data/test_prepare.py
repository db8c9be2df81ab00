"""Preparation: equal bytes, bad files, duplicates, kills, and two processes."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.data_config import DataConfig
from diffusion.data.journal import SplitTarget, fill_split
from diffusion.data.prepare import prepare
from diffusion.data.source import ArrayReader
from diffusion.images.store import content_digest, open_store, row_digests
from diffusion.system.errors import DiffctlError, Interrupted
from diffusion.system.locks import file_lock
from diffusion.system.signals import stop_request
from tests.conftest import ROOT, start_python
from tests.helpers.damaged_bytes import damages
from tests.helpers.raw_data import by_image, prepared, random_images, tree, write_folder, write_numbered
from tests.helpers.small import own_code
from tests.helpers.waiting import wait_until

PROGRAM = """
import sys
from pathlib import Path
from diffusion.data.sources.image_folder import ImageFolderConfig
from diffusion.data.prepare import prepare

config = ImageFolderConfig(name="image-folder", path=Path(sys.argv[1]), image_size=48)
prepare(config, Path("out"), lambda done, total: print(done, total, flush=True), work=Path("work"))
"""


def folder_config(raw, **options):
    return DataConfig(name="image-folder", path=raw, **{"image_size": 8, **options})


def with_bad_images(raw):
    """Write 20 good images of two classes, and three unreadable ones."""
    write_numbered(raw, random_images(0, 20, 8), "ab")
    good = (raw / "a/0.png").read_bytes()
    (raw / "a/cut.png").write_bytes(good[:-40])
    (raw / "b/text.png").write_text("not an image")
    (raw / "c").mkdir()
    (raw / "c/only.png").write_text("the one image of its class")
    return raw


@pytest.mark.slow
def test_equal_raw_files_give_equal_bytes(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    write_numbered(here / "raw", random_images(0, 600, 8), "abc")
    shutil.copytree(here, elsewhere, copy_function=shutil.copyfile)  # other times, another place
    for number, place in enumerate((here, elsewhere)):
        monkeypatch.chdir(place)
        prepare(folder_config("raw"), tmp_path / f"out{number}", work=tmp_path / f"work{number}")
        assert os.listdir(tmp_path / f"work{number}") == []
    assert tree(tmp_path / "out0") == tree(tmp_path / "out1")
    assert set(tree(tmp_path / "out0")) == {
        f"{split}/{name}" for split in ("train", "test") for name in ("images.npy", "labels.npy", "meta.json")
    }


def test_unusable_files_stop_and_a_skip_lists_them_and_decodes_nothing_again(tmp_path):
    raw = with_bad_images(tmp_path / "raw")
    with pytest.raises(DiffctlError, match="3 of the raw files cannot be used") as error:
        prepare(folder_config(raw), tmp_path / "out", work=tmp_path / "work")
    assert "1 truncated (a/cut.png)" in str(error.value)
    assert "2 not an image (b/text.png, c/only.png)" in str(error.value)
    listed = (tmp_path / "work/problems.csv").read_text()
    assert listed.startswith("file,why\n")
    assert len(listed.splitlines()) == 4
    assert not (tmp_path / "out").exists()
    steps = []
    config = folder_config(raw, on_bad="skip")
    prepare(config, tmp_path / "out", lambda *step: steps.append(step), work=tmp_path / "work")
    assert steps == [(21, 23), (23, 23)]  # one step per split: all was done
    train, test = (open_store(tmp_path / "out" / split) for split in ("train", "test"))
    assert train.meta["classes"] == ["a", "b"]  # class c lost its only image
    good = {image.tobytes(): "ab"[at % 2] for at, image in enumerate(random_images(0, 20, 8))}
    assert by_image(train) | by_image(test) == good
    assert sum(train.meta["skipped"].values()) == 3
    assert content_digest(train.images, train.labels) == train.digest
    assert (tmp_path / "out/skipped.csv").read_text() == listed


def test_file_that_could_not_be_read_is_read_again(tmp_path, monkeypatch):
    """Its name, size and time stay the same, for example when access is given."""
    raw = write_numbered(tmp_path / "raw", random_images(0, 20, 8))
    for failure, why in (
        (PermissionError(13, "Permission denied"), "not readable"),
        (MemoryError(), "memory"),
    ):

        def fail(*arguments, failure=failure):
            raise failure

        name = "read_regular" if isinstance(failure, OSError) else "load_pixels"
        with monkeypatch.context() as patch:
            patch.setattr(f"diffusion.data.readers.image_files.{name}", fail)
            with pytest.raises(DiffctlError, match=f"20 of the raw files .*{why}"):
                prepare(folder_config(raw), tmp_path / "out", work=tmp_path / "work")
        assert len(prepared(tmp_path, name="image-folder", path=raw, image_size=8)[0]) == 18


def test_duplicates_are_counted_within_and_across(tmp_path):
    pool = random_images(0, 16, 8)
    names = [f"train/a/{at}" for at in range(12)] + [f"test/a/{at}" for at in range(4)]
    images = dict(zip(names, pool, strict=True))
    images["train/a/1"] = images["train/a/2"] = images["train/a/0"]
    images["test/a/0"] = images["train/a/5"]
    write_folder(tmp_path / "raw", images)
    train, test = prepared(tmp_path, name="image-folder", path=tmp_path / "raw", image_size=8)
    assert train.meta["duplicates"] == {"within": 2}
    assert test.meta["duplicates"] == {"within": 0, "of_train": 1}
    listed = (tmp_path / "prepared/duplicates.csv").read_text().splitlines()
    copies = {tuple(sorted(line.replace("copy of ", "").split(","))) for line in listed[1:]}
    assert listed[0] == "file,why"
    assert len(copies) == 3
    assert ("test: test/a/0.png", "train: train/a/5.png") in copies
    assert {name for pair in copies for name in pair} == {
        "test: test/a/0.png",
        *(f"train: train/a/{at}.png" for at in (0, 1, 2, 5)),
    }


def test_signal_stops_a_download_at_once(tmp_path, monkeypatch):
    class Download:
        def open(self, notify):
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it continues")

    monkeypatch.setattr("diffusion.data.prepare.build_source", lambda config: Download())
    with pytest.raises(Interrupted), stop_request():
        prepare(DataConfig(name="digits"), tmp_path / "out", work=tmp_path / "work")


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    images = random_images(0, 40, 48)
    raw = tmp_path_factory.mktemp("many") / "raw"
    return write_folder(raw, {f"{'ab'[at % 2]}/{at:05d}": images[at % 40] for at in range(6000)})


@pytest.fixture(scope="module")
def uninterrupted(many_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepare(folder_config(many_images, image_size=48), folder / "out", work=folder / "work")
    return tree(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_killed_preparation_resumes_and_leaves_no_process(tmp_path, many_images, uninterrupted, kill):
    process = start_python(tmp_path, "-c", PROGRAM, str(many_images), env=own_code(ROOT))
    block = SplitTarget(tmp_path, (6000, 48, 48, 3)).block
    while int(process.stdout.readline().split()[0]) < block:
        pass
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(kill)
    process.wait(60)
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    assert not (tmp_path / "out").exists()
    noted = sum(len(path.read_text().splitlines()) for path in (tmp_path / "work").rglob("journal.jsonl"))
    steps = []
    config = folder_config(many_images, image_size=48)
    prepare(config, tmp_path / "out", lambda done, total: steps.append(done), work=tmp_path / "work")
    assert steps[0] >= block * (noted - 2)  # the last block of a split is shorter
    assert tree(tmp_path / "out") == uninterrupted


@pytest.mark.slow
def test_killed_worker_is_one_sentence(tmp_path, many_images):
    config = folder_config(many_images, image_size=48)

    def kill_a_worker(done, total):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DiffctlError, match="was killed, most likely for lack of memory"):
        prepare(config, tmp_path / "out", kill_a_worker, work=tmp_path / "work")
    prepare(config, tmp_path / "out", work=tmp_path / "work")
    assert len(open_store(tmp_path / "out/train")) == 5400


@pytest.mark.slow
def test_second_preparation_is_refused(tmp_path, many_images):
    config = folder_config(many_images, image_size=48)

    def again(done, total):
        prepare(config, tmp_path / "out", work=tmp_path / "work")

    with pytest.raises(DiffctlError, match="another process is preparing this data set already"):
        prepare(config, tmp_path / "out", again, work=tmp_path / "work")


# Equal preparations: one deletes its folder while another one waits for the lock.
AGAIN = """
from pathlib import Path
from diffusion.system import locks
from diffusion.data import prepare as module

locks.MIN_WAIT_SECONDS = 60
for _ in range(2):
    module.prepare(module.DataConfig(name="digits"), Path("out"), work=Path("work"))
"""


@pytest.mark.slow
def test_overlapping_preparations_lose_nothing(tmp_path):
    running = [start_python(tmp_path, "-c", AGAIN, env=own_code(ROOT)) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in running] == [""] * 3
    assert len(open_store(tmp_path / "out/train")) + len(open_store(tmp_path / "out/test")) == 1797
    assert os.listdir(tmp_path / "work") == []


MANY_IMAGES = random_images(0, 600, 4)


@given(damage=damages(), name=st.sampled_from(["journal", "digests", "images"]))
def test_damaged_unfinished_split_is_redone_or_detected(damage, name):
    """Journal lines are checksummed; pixels are verified by readers of the store."""
    with tempfile.TemporaryDirectory() as folder:
        target = SplitTarget(Path(folder) / "split", MANY_IMAGES.shape)
        fill_split(ArrayReader(MANY_IMAGES), target, lambda images: None)
        digests = target.digests.read_bytes()
        file = getattr(target, name)
        file.write_bytes(damage(file.read_bytes()))
        assert fill_split(ArrayReader(MANY_IMAGES), target, lambda images: None) == {}
        assert target.digests.read_bytes() == digests
        images = np.load(target.images)
        noted = np.frombuffer(digests, np.uint8).reshape(-1, 64)[:, :32]
        assert name == "images" or np.array_equal(images, MANY_IMAGES)
        assert np.array_equal(images, MANY_IMAGES) == np.array_equal(row_digests(images), noted)


def test_changed_files_restart_and_unfinished_work_of_other_settings_is_removed(tmp_path):
    raw, work = with_bad_images(tmp_path / "raw"), tmp_path / "work"
    for size in (8, 12):
        with pytest.raises(DiffctlError):
            prepare(folder_config(raw, image_size=size), tmp_path / "out", work=work)
    left = sorted(path for path in work.iterdir() if path.is_dir())
    assert len(left) == 2
    for path in ("a/cut.png", "b/text.png", "c/only.png"):
        shutil.copyfile(raw / "b/1.png", raw / path)
    with file_lock(work / f"{left[0].name}.lock"):  # as the process that fills it
        prepare(folder_config(raw), tmp_path / "out", work=work)
    assert open_store(tmp_path / "out/train").meta["classes"] == ["a", "b", "c"]
    assert [path for path in work.iterdir() if path.is_dir()] == left[:1]


MOVES = {"os.link", "os.rename", "os.remove", "shutil.copyfile", "shutil.rmtree"}  # Python's audit events
KILLED, DONE = -signal.SIGKILL, 0


def killed_before_move(number, config, out, work):
    """Prepare in a process that is killed before that operation of the last step; return its exit code."""

    def run():
        seen = -1  # no store yet

        def watch(event, arguments):
            nonlocal seen
            if event == "os.mkdir" and f".{out.name}." in str(arguments[0]):
                seen = 0
            elif seen >= 0 and event in MOVES:
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(watch)
        prepare(config, out, work=work)
        os._exit(DONE)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def test_a_failure_of_the_last_step_loses_no_finished_image(tmp_path, monkeypatch):
    raw = write_numbered(tmp_path / "raw", random_images(0, 24, 8), "ab")
    out, work, replace = tmp_path / "out", tmp_path / "work", os.replace

    def fail(source, target):
        if target == out:
            raise OSError("the disk fails")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="the disk fails"):
            prepare(folder_config(raw), out, work=work)
    assert len([*work.rglob("images.npy")]) == 2, "those of both splits stay"
    prepare(folder_config(raw), out, work=work)
    assert sum(len(open_store(out / split)) for split in ("train", "test")) == 24


@pytest.mark.slow
def test_killed_last_step_is_repaired(tmp_path):
    images, number = random_images(0, 24, 8), 0
    images[7] = images[3]  # for a list of duplicates
    raw, out, work = write_numbered(tmp_path / "raw", images, "ab"), tmp_path / "data/out", tmp_path / "work"
    (raw / "a/0.png").write_text("not an image")  # for a list of skipped files
    config = folder_config(raw, on_bad="skip")
    prepare(config, tmp_path / "whole", work=work)
    while (code := killed_before_move(number, config, out, work)) != DONE:
        assert code == KILLED
        prepare(config, out, work=work)
        assert tree(out) == tree(tmp_path / "whole")
        assert os.listdir(out.parent) == ["out"]
        assert os.listdir(work) == []
        shutil.rmtree(out)
        number += 1
    assert number >= 4
