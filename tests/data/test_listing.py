"""Listings of image folders, compared with plain Python and os.walk."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data.readers.listing import list_images

STEMS = st.sampled_from(["a", "A", "a.b", "b-1", "ß", "SS", "Ω", "0", "10", "9"])
NAMES = st.builds(lambda stem, suffix: stem + suffix, STEMS, st.sampled_from([".png", ".JPG", ".txt", ""]))
FOLDERS = st.sampled_from(["", "x/", "x/y/", "ä/", "x-1/"])


def plainly(root, paths):
    """Return the images in order, and those with the stem of an earlier file of their folder."""
    images, twins = [], []
    for folder in sorted({os.path.dirname(path) for path in paths}, key=lambda name: name.split("/")):
        taken = set()
        for path in sorted((path for path in paths if os.path.dirname(path) == folder), key=os.fsencode):
            stem, suffix = os.path.splitext(os.path.basename(path))
            if suffix.lower() in (".png", ".jpg"):
                (twins if stem.casefold() in taken else images).append(path)
                taken.add(stem.casefold())
    return images, twins


@given(paths=st.sets(st.builds(lambda folder, name: folder + name, FOLDERS, NAMES), max_size=30))
def test_listing_equals_plain_python(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("raw")
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    listing = list_images(root)
    images, twins = plainly(root, paths)
    found = [os.fsdecode(path) for path in listing.paths.take(np.arange(len(listing.paths)))]
    assert found == images
    assert [problem.where for problem in listing.problems] == twins
    assert sorted(listing.others) == sorted(
        path for path in paths if os.path.splitext(path)[1] not in (".png", ".JPG")
    )
    assert [listing.paths.find(path) for path in images] == list(range(len(images)))
    assert all(listing.paths.find(path) == -1 for path in [*twins, "x", "nowhere/a.png", "", "x/~.png"])


@pytest.mark.parametrize("change", ["name", "size", "time", "nothing"])
def test_content_covers_names_and_sizes_and_identity_also_times(tmp_path, change):
    for name in ("a.png", "b/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"some")
    before = list_images(tmp_path)
    if change == "name":
        (tmp_path / "a.png").rename(tmp_path / "d.png")
    elif change == "size":
        (tmp_path / "a.png").write_bytes(b"more of it")
    elif change == "time":
        os.utime(tmp_path / "a.png", (1, 1))
    after = list_images(tmp_path)
    assert (before.content == after.content) == (change in ("time", "nothing"))
    assert (before.identity == after.identity) == (change == "nothing")
