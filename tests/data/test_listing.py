"""Listings of image folders: equal to plain Python's; every entry is read or reported, and nothing blocks."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.readers.image_files import as_text, list_images, read_images
from diffusion.data.source import ImageProblem, summarize
from diffusion.evaluate.adhoc import open_images
from diffusion.system.errors import DiffctlError
from tests.helpers import special_paths as at
from tests.helpers.damaged_bytes import bounded
from tests.helpers.raw_data import random_images, write_numbered

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
    assert as_text(listing.paths) == images
    assert [problem.where for problem in listing.problems] == twins
    assert sorted(listing.others) == sorted(
        path for path in paths if os.path.splitext(path)[1] not in (".png", ".JPG")
    )


def test_content_covers_names_and_sizes_and_identity_also_times(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"some")
    before = list_images(tmp_path)
    assert list_images(tmp_path).identity == before.identity
    changes = {
        "time": lambda path: os.utime(path, (1, 1)),
        "size": lambda path: path.write_bytes(b"more of it"),
        "name": lambda path: path.rename(tmp_path / "c.png"),
    }
    for name, change in changes.items():
        change(tmp_path / "a.png")
        after = list_images(tmp_path)
        assert (before.content == after.content) == (name == "time")
        assert before.identity != after.identity
        before = after


def image(folder, name):
    Image.fromarray(random_images(len(name), 1, 8)[0]).save(folder / name, "PNG")


KINDS = {
    "an image": image,
    "nothing in it": lambda folder, name: (folder / name).touch(),
    "a pipe": at.a_fifo,
    "a socket": at.a_socket,
    "a device": at.an_endless_device,
    "a circle": at.a_loop,
    "nowhere": at.a_dangling_link,
    "a folder of that name": at.a_folder,
    "a way up": lambda folder, name: (folder / name).symlink_to(".."),
}
BYTES = st.binary(min_size=1, max_size=250).filter(lambda name: not {0, 47} & set(name) and name[:1] != b".")
ENTRIES = st.dictionaries(BYTES, st.sampled_from(list(KINDS)), max_size=8)


@pytest.mark.slow
@settings(max_examples=30)
@given(entries=ENTRIES)
def test_every_entry_is_image_or_problem(tmp_path_factory, entries):
    root = tmp_path_factory.mktemp("above") / "raw"
    root.mkdir()
    for name, kind in entries.items():
        KINDS[kind](root, os.fsdecode(name + b".png"))

    def read_all():
        listing = list_images(root)
        rows = read_images(root, listing.paths.tolist(), (8, 8), 3)
        names = as_text(listing.paths)
        assert summarize([ImageProblem(names[row], why) for row, why in rows.bad.items()]).isprintable()
        return sorted(path for row, path in enumerate(listing.paths.tolist()) if row not in rows.bad)

    message = bounded(read_all)
    good = {name + b".png" for name, kind in entries.items() if kind == "an image"}
    stems = {os.fsdecode(name).casefold() for name in entries}
    if len(stems) == len(entries):  # otherwise some share a stem
        assert message == repr(sorted(good))


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31mred", "\u202eleft".encode(), b"\x7f"])
def test_unprintable_class_folder_is_refused(tmp_path, name):
    write_numbered(tmp_path, random_images(0, 6, 8), "ab")
    os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(DiffctlError, match="has a class named") as error:
        build_source(DataConfig(name="image-folder", path=tmp_path, image_size=8)).open()
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("an image", "a way up")])
def test_folder_to_score_has_complete_images_or_is_refused(tmp_path, kind):
    write_numbered(tmp_path / "raw", random_images(0, 3, 8))
    KINDS[kind](tmp_path / "raw", "x\n.png")
    message = bounded(lambda: open_images(tmp_path / "raw").images.shape)
    assert message.isprintable()
    assert message == "(3, 8, 8, 3)" if kind == "a folder of that name" else r"x\n.png" in message
