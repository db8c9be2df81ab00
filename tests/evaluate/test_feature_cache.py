"""The feature cache: keyed by content, resumed after an interruption, robust against damaged files."""

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from diffusion.evaluate import references
from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.evaluate.features.extractors import Features, extract
from diffusion.evaluate.features.reference_features import Reference
from diffusion.evaluate.references import blocks, cached_features
from diffusion.evaluate.scores import kernel_distance, moments
from diffusion.evaluate.scores.scorer import Scorer
from diffusion.images.store import write_store
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.system.checksums import write_checksummed
from diffusion.system.errors import DiffctlWarning
from diffusion.system.files import disk_usage
from tests.evaluate.test_scorer import META


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache and small blocks."""
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(references, "BLOCK", 4)
    return tmp_path / "cache"


def stored(path, seed):
    """Return a store of 11 images, in blocks of 4 and 7."""
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 8, 8, 1), dtype=np.uint8)
    return write_store(path, pixels, None, {"name": path.name})


@pytest.fixture
def images(tmp_path):
    return stored(tmp_path / "images", 0)


def seen(extractor, *stores):
    """Return the features and the calls of the progress callback."""
    calls = []
    found = cached_features(extractor, stores, progress=lambda *numbers: calls.append(numbers))
    return found, calls


def files(cache):
    return sorted((cache / "features").glob("*/*.features"))


def same(a: Features, b: Features) -> bool:
    return np.array_equal(a.features, b.features) and np.array_equal(a.logits, b.logits)


@pytest.mark.parametrize("count", [2, 4, 5, 8, 9, 11])
def test_blocks_cover_every_image_once(count):
    made = blocks(count)
    assert [row for block in made for row in block] == list(range(count))
    assert all(len(block) >= 2 for block in made)


def test_second_call_reads_the_cache(extractor, images, cache):
    (first,), calls = seen(extractor, images)
    assert (calls[0], calls[-1]) == ((0, 11), (11, 11))
    assert [path.stem for path in files(cache)] == ["000000000-000000004", "000000004-000000011"]
    (again,), calls = seen(extractor, images)
    assert calls == []
    assert same(first, again)
    plain = extract(extractor, images.images)
    np.testing.assert_allclose(first.features, plain.features, atol=1e-5)


@pytest.mark.parametrize("field", ["weights_sha256", "spec"])
def test_other_extractor_or_weights_miss_the_cache(extractor, images, field):
    seen(extractor, images)
    other = {"weights_sha256": "0" * 64, "spec": EXTRACTORS["effnet-lite0-96"]}[field]
    assert seen(replace(extractor, **{field: other}), images)[1][0] == (0, 11)


def test_another_version_of_torch_misses_the_cache(extractor, images, monkeypatch):
    """The card has the version that scored, and features of another one differ by rounding."""
    seen(extractor, images)
    monkeypatch.setattr(references, "version", lambda name: "99")
    assert seen(extractor, images)[1][0] == (0, 11)


def test_interrupted_extraction_resumes(extractor, images, cache):
    (whole,), _ = seen(extractor, images)
    for path in files(cache):
        path.unlink()

    def interrupt(done, total):
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(extractor, [images], progress=interrupt)
    assert len(files(cache)) == 1
    (found,), calls = seen(extractor, images)
    assert (calls[0], calls[-1]) == ((0, 7), (7, 7))
    assert same(found, whole)


def storing(**shapes):
    """Return a function that replaces a block by zeros of these shapes, with a valid checksum."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return lambda path, other: write_checksummed(
        path, lambda file: file.write(save(arrays)), f"{path.parent.name}/{path.name}"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, other: path.write_bytes(path.read_bytes()[:-5]),
        lambda path, other: path.write_bytes((data := path.read_bytes())[:300] + b"?" + data[301:]),
        lambda path, other: path.write_bytes(other.read_bytes()),
        storing(features=(4, 1279), logits=(4, 1000)),
        storing(logits=(4, 1000)),
    ],
    ids=["cut", "byte", "renamed", "other width", "no features"],
)
def test_damaged_or_unfit_block_is_extracted_again(extractor, images, cache, damage):
    (whole,), _ = seen(extractor, images)
    path, other = files(cache)
    data = path.read_bytes()
    damage(path, other)
    with pytest.warns(DiffctlWarning, match="are damaged .* extracting them again"):
        (found,), calls = seen(extractor, images)
    assert calls[-1] == (4, 4)
    assert same(found, whole)
    assert path.read_bytes() == data


def test_unwritable_cache_is_only_a_warning(extractor, images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "file"))
    with pytest.warns(DiffctlWarning, match="cannot be cached .* DIFFCTL_CACHE"):
        (found,), _ = seen(extractor, images)
    assert len(found) == 11


def test_least_recently_used_features_are_evicted(extractor, images, cache, tmp_path, monkeypatch):
    other, third = stored(tmp_path / "b", 1), stored(tmp_path / "c", 2)
    for at, store in enumerate((images, other), 1):
        before = set((cache / "features").glob("*"))
        seen(extractor, store)
        (made,) = set((cache / "features").iterdir()) - before
        os.utime(made, (at, at))  # long ago, since file times may be coarse
    seen(extractor, images)  # used again
    (size,) = {disk_usage(folder) for folder in (cache / "features").iterdir()}
    monkeypatch.setattr(references, "MAX_BYTES", 2 * size)
    seen(extractor, third)
    assert seen(extractor, images)[1] == []
    assert seen(extractor, other)[1][0] == (0, 11)


@pytest.mark.slow
def test_scoring_holds_one_float64_copy_at_a_time(monkeypatch):
    """Scoring adds 12 bytes for each number of a set: 8, and 4 of a shuffled copy."""
    for module in (moments, kernel_distance):
        monkeypatch.setattr(module, "BLOCK", 64)
    for name, value in (("WHOLE", 0), ("COLUMNS", 64), ("PAIRED", 50)):
        monkeypatch.setattr(kernel_distance, name, value)
    peaks = []
    for count in (200, 2000, 6000):  # the first imports, too
        made, real, held = np.random.default_rng(0).normal(size=(3, count, 64)).astype(np.float32)
        tracemalloc.start()
        try:
            scorer = Scorer(
                Reference(META, real, Features(held)), EvaluateConfig(prc_images=100, kid_subset_size=50)
            )
            scorer.scores(Features(made)), scorer.real(count)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / (4000 * 64) < 16
