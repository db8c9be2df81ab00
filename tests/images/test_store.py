"""A store returns what was written, or is refused. Samples show which share of a set is in another."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.images import store as stores
from diffusion.images.store import (
    DIGITS,
    SAMPLED,
    TAG_LENGTH,
    ImageStore,
    contained_share,
    image_sample,
    open_store,
    write_store,
)
from diffusion.images.store_meta import CellMeta, PreparedMeta, StoreMeta
from diffusion.layout import PREPARED
from diffusion.system.checksums import add_checksum
from diffusion.system.errors import DiffctlError, UsageError
from tests.helpers.damaged_bytes import Damage, damages
from tests.helpers.digits_sweep import tamper

META = {"name": "noise", "classes": ["a", "b"], "card": {"steps": 5, "eta": 0.5}}


def written(path: Path, count: int = 6) -> ImageStore:
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 3, 1), dtype=np.uint8)
    return write_store(path, images, np.arange(count) % 2, META)


def write_meta(path: Path, **changes: object) -> None:
    """Write these values into the store's meta with a right checksum."""
    values = json.loads((path / "meta.json").read_text())
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    (path / "meta.json").write_text(json.dumps(add_checksum(values)))


def same(one: ImageStore, other: ImageStore) -> bool:
    labels = np.array_equal(one.labels, other.labels)
    return np.array_equal(one.images, other.images) and labels and one.meta == other.meta


def test_store_round_trips(tmp_path: Path) -> None:
    store = written(tmp_path / "s")
    assert same(open_store(tmp_path / "s", CellMeta), store)
    assert store.meta == {**META, "count": 6, "digest": store.digest}


@given(damage=damages(), name=st.sampled_from(["images.npy", "labels.npy", "meta.json"]))
def test_damaged_store_is_refused_or_equal(damage: Damage, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        whole, file = written(path), path / name
        file.write_bytes(damage(file.read_bytes()))
        try:
            again = open_store(path)
        except DiffctlError as error:
            again, message = None, str(error)
        assert same(again, whole) if again is not None else str(path) in message and "\n" not in message


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("images.npy", "no images in .*: images.npy is missing"),
        ("meta.json", "no images in .*: meta.json is missing"),
        ("labels.npy", "changed after they were written: make them again"),
    ],
)
def test_missing_file_is_detected(tmp_path: Path, gone: str, message: str) -> None:
    (written(tmp_path / "s").path / gone).unlink()
    with pytest.raises(DiffctlError, match=message):
        open_store(tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"digest": "0"}, StoreMeta, "digest: it must match"),
        ({"count": -1}, StoreMeta, "count: it must be greater"),
        ({"card": [1]}, CellMeta, "card: it must be a section"),
        ({}, PreparedMeta, "split: it is missing"),
    ],
)
def test_required_meta_fields_are_checked(
    tmp_path: Path, changes: dict[str, object], kind: type[StoreMeta], expected: str
) -> None:
    written(tmp_path / "s")
    write_meta(tmp_path / "s", **changes)
    with pytest.raises(DiffctlError, match=f"have an incomplete meta.json: .*{expected}.*: make them again"):
        open_store(tmp_path / "s", kind)


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000, '{"count": 6}'])
def test_foreign_meta_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path / "s")
    (tmp_path / "s/meta.json").write_text(text)
    with pytest.raises(DiffctlError, match=r"meta.json (is damaged|was not written by diffctl or is edited)"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 2, 3, 1), np.int8), r"are invalid \(int8"),
        (np.zeros((6, 6), np.uint8), r"are invalid \(uint8 \(6, 6\)"),
        (np.zeros((5, 2, 3, 1), np.uint8), "the labels are int64"),
    ],
)
def test_invalid_arrays_are_refused(tmp_path: Path, array: np.ndarray, expected: str) -> None:
    written(tmp_path / "s")
    np.save(tmp_path / "s/images.npy", array)
    with pytest.raises(DiffctlError, match=expected):
        open_store(tmp_path / "s")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that counts as large, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "LARGE", 0)
    return written(tmp_path / "s").path


def test_large_store_is_hashed_again_only_after_a_change(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[object] = []
    digest_of = stores.content_digest
    monkeypatch.setattr(stores, "content_digest", lambda *of: hashed.append(1) or digest_of(*of))

    def opened() -> int:
        hashed.clear()
        open_store(large)
        return len(hashed)

    assert (opened(), opened()) == (1, 1), "outside of a project there is no place for a note"
    Path("runs").mkdir()
    assert (opened(), opened()) == (1, 0)
    os.utime(large / "images.npy", ns=(1, 1))  # as after `dvc checkout`: same images, other time
    assert (opened(), opened()) == (1, 0)
    shutil.copytree(large, "copy")
    shutil.rmtree(large)
    Path("copy").rename(large)
    assert (opened(), opened()) == (1, 0)
    (note,) = Path("runs/verified").iterdir()
    note.write_text("{")  # damaged, so ignored
    assert (opened(), opened()) == (1, 0)


def test_edit_with_restored_time_is_detected(large: Path) -> None:
    Path("runs").mkdir()
    open_store(large)
    before = (large / "images.npy").stat()
    tamper(large, row=3)
    os.utime(large / "images.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DiffctlError, match="changed after they were written"):
            open_store(large)


def test_missing_prepared_data_name_the_stage_that_makes_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"images.npy is missing; `diffctl stage data`"):
        open_store(PREPARED / "train")


@given(st.integers(0, 2**32), st.integers(1, 1000), st.integers(0, 8000), st.floats(0, 1))
def test_share_is_exact_for_subsets_and_near_for_others(seed, count, more, kept):
    """A set of `count` images; other ones have all or the part `kept` of them, and `more` images."""
    pool = np.random.default_rng(seed).integers(0, 256, (count + more, 32), np.uint8)
    tag = image_sample([pool[:count]])[:TAG_LENGTH]
    assert contained_share(tag, image_sample([pool[more:], pool])) in (1, None), "in parts, with copies"
    stay = round(kept * count)
    share = contained_share(tag, image_sample([pool[count - stay :]])) if stay + more else None
    tested = min(TAG_LENGTH / DIGITS, count) * min(1.0, SAMPLED / max(1, stay + more))
    if share is not None:
        assert share == pytest.approx(stay / count, abs=max(0.02, 6 * (0.25 / tested) ** 0.5))
