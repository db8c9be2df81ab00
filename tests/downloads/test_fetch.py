"""Downloads: resumption, verification, mirrors, and one sentence for each failure."""

import hashlib
import os
import ssl
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from diffusion.downloads import fetch as downloads
from diffusion.downloads.fetch import RemoteFile, cache_root, fetch, find_file, raw_folder
from diffusion.system.errors import DiffctlError, TemporaryError
from tests.conftest import ROOT, start_python
from tests.helpers.file_server import serving
from tests.helpers.waiting import wait_until

CONTENT = np.random.default_rng(0).bytes(3_000_000)


def remote(*urls, algorithm="sha256"):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    return RemoteFile("file.bin", urls, f"{algorithm}:{digest}", len(CONTENT))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFCTL_MIRROR", raising=False)
    monkeypatch.setattr(downloads, "WAIT", 0.01)
    return tmp_path / "cache/set"


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_file_is_downloaded_once(folder, algorithm):
    with serving({"file.bin": CONTENT}) as server:
        wanted = remote(server.url("file.bin"), algorithm=algorithm)
        seen = []
        path = fetch(wanted, folder, lambda *step: seen.append(step))
        assert path.read_bytes() == CONTENT
        assert fetch(wanted, folder) == path
        assert len(server.requests) == 1
    assert leftovers(folder) == ["file.bin"]
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert seen[-1] == (len(CONTENT), len(CONTENT), "file.bin")


@pytest.mark.parametrize(
    "faults",
    [
        ["503"],
        ["429", "500"],
        ["cut"] * 8,  # each attempt makes progress, so the attempts are not exhausted
        ["cut", "503", "cut", "no ranges"],
        ["cut", "wrong byte"],
        ["no length"],
        ["no length, cut"] * 8,
        ["hang"],
    ],
    ids=" ".join,
)
def test_download_completes_despite_faults(folder, faults, monkeypatch):
    if "hang" in faults:
        monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    with serving({"file.bin": CONTENT}, *faults) as server:
        path = fetch(remote(server.url("file.bin")), folder)
        assert not server.faults
    assert path.read_bytes() == CONTENT
    assert leftovers(folder) == ["file.bin"]


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("have", [0, 1, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 100])
def test_any_partial_file_gives_the_right_result(folder, have, honest):
    folder.mkdir(parents=True)
    partial = (CONTENT + bytes(100))[:have] if honest else bytes(have)
    (folder / ".file.bin.part").write_bytes(partial)
    with serving({"file.bin": CONTENT}) as server:
        assert fetch(remote(server.url("file.bin")), folder).read_bytes() == CONTENT


@pytest.mark.slow
def test_download_resumes_after_sigkill(folder):
    with serving({"file.bin": CONTENT}, "cut", "hang") as server:
        wanted = remote(server.url("file.bin"))
        program = f"from diffusion.downloads.fetch import *; fetch({wanted!r}, Path({str(folder)!r}))"
        process = start_python(ROOT, "-c", program)
        wait_until(lambda: len(server.requests) == 2)  # the second request hangs
        process.kill()
        process.communicate()
        assert fetch(wanted, folder).read_bytes() == CONTENT
        assert server.ranges()[2] == f"bytes={len(CONTENT) // 2}-"


def test_mirrors_are_tried_in_turn_and_resume(folder):
    with serving({"file.bin": CONTENT}, "cut") as first, serving({"file.bin": CONTENT}) as second:
        urls = [first.url("gone.bin"), first.url("file.bin"), second.url("file.bin")]
        path = fetch(remote("http://127.0.0.1:9/file.bin", *urls), folder)
        assert path.read_bytes() == CONTENT
        assert second.ranges() == [f"bytes={len(CONTENT) // 2}-"]


def test_configured_mirror_is_tried_first(folder, monkeypatch):
    with serving({"mirror/set/file.bin": CONTENT}) as server:
        monkeypatch.setenv("DIFFCTL_MIRROR", server.url("mirror/"))
        fetch(remote("http://127.0.0.1:9/file.bin"), folder)
        assert [path for path, _ in server.requests] == ["/mirror/set/file.bin"]
    monkeypatch.setenv("DIFFCTL_MIRROR", "http://ann:secret@127.0.0.1:9/")
    with pytest.raises(TemporaryError, match=r"\(127\.0\.0\.1:9: no connection\)"):
        fetch(remote(), folder / "other")


@pytest.mark.parametrize("content", [b"another file", bytes(len(CONTENT))], ids=["short", "same length"])
def test_wrong_content_is_refused_and_not_kept(folder, content):
    with (
        serving({"file.bin": content}) as server,
        pytest.raises(DiffctlError, match="serves another file") as error,
    ):
        fetch(remote(server.url("file.bin")), folder)
    assert not isinstance(error.value, TemporaryError)
    assert leftovers(folder) == []


@pytest.mark.parametrize("fault", ["", "no ranges"])
def test_a_page_instead_of_the_rest_leaves_the_partial_file(folder, fault):
    folder.mkdir(parents=True)
    (folder / ".file.bin.part").write_bytes(CONTENT[:1000])
    with (
        serving({"file.bin": b"<p>Log in" * 1000}, fault) as server,
        pytest.raises(DiffctlError, match="9,000 bytes, expected 3,000,000"),
    ):
        fetch(remote(server.url("file.bin")), folder)
    assert (folder / ".file.bin.part").read_bytes() == CONTENT[:1000]


def test_untrusted_certificate_is_named_at_once(folder, monkeypatch):
    attempts = []

    def get(url, **_):
        attempts.append(url)
        why = "certificate verify failed: self-signed certificate (_ssl.c:1006)"
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, why))

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(
        DiffctlError, match=r"a\.org: its certificate is not trusted \(self-signed c"
    ) as error:
        fetch(remote("https://a.org/file.bin"), folder)
    assert not isinstance(error.value, TemporaryError)
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("fault", "requests", "kind"), [("404", 1, DiffctlError), ("503", 6, TemporaryError)]
)
def test_failing_server_ends_in_one_sentence(folder, fault, requests, kind):
    with serving({"file.bin": CONTENT}, *[fault] * 9) as server:
        with pytest.raises(DiffctlError, match=f"HTTP {fault}") as error:
            fetch(remote(server.url("file.bin")), folder)
        assert len(server.requests) == requests
    assert type(error.value) is kind
    assert str(folder / "file.bin") in str(error.value)
    assert "\n" not in str(error.value)


def test_attempts_without_ranges_end_unless_one_gets_further_than_all_before(folder):
    """Those that begin again are longer than the one before every second time."""
    faults = ["no ranges, cut at 1000000", "no ranges, cut at 500000"] * 9
    with serving({"file.bin": CONTENT}, *faults) as server:
        with pytest.raises(TemporaryError, match="broke off"):
            fetch(remote(server.url("file.bin")), folder)
        assert len(server.requests) == 7
    assert leftovers(folder) == [".file.bin.part"]


def test_unreachable_addresses_are_all_named_after_two_attempts_each(folder, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads, "WAIT", 1.0)
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    addresses = "http://127.0.0.1:9/file.bin", "http://nowhere.invalid/file.bin"
    with serving({}) as server, pytest.raises(TemporaryError) as error:
        fetch(remote(*addresses, server.url("gone.bin")), folder)
    for reason in ("127.0.0.1:9: no connection; nowhere.invalid: no connection; 127.0.0.1", "HTTP 404"):
        assert reason in str(error.value)
    assert sum(waits) <= 4


def test_existing_file_is_verified(folder):
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(CONTENT)
    assert fetch(remote(), folder) == folder / "file.bin"
    (folder / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DiffctlError, match="is not the published file"):
        fetch(remote(), folder)
    assert (folder / "file.bin").exists()


def test_concurrent_calls_download_once(folder):
    with serving({"file.bin": CONTENT}, "cut") as server:
        with ThreadPoolExecutor(6) as pool:
            paths = list(pool.map(fetch, [remote(server.url("file.bin"))] * 6, [folder] * 6))
        assert len(server.requests) == 2
    assert paths == [folder / "file.bin"] * 6


def test_cache_folder_follows_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DIFFCTL_CACHE", raising=False)
    assert cache_root() == tmp_path / "diffctl"
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "big"))
    assert raw_folder("cifar10", None) == tmp_path / "big/cifar10"
    assert raw_folder("cifar10", tmp_path / "own") == tmp_path / "own"


def test_nearest_regular_file_is_found(tmp_path):
    for folder in ("a/b/c", "b/c", "c", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for path in ("a/b/c/x", "b/c/x", "elsewhere/x"):
        (tmp_path / path).touch()
    assert find_file(tmp_path / "gone", "x") is None
    os.mkfifo(tmp_path / "c/x")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/d").symlink_to(tmp_path / "elsewhere")
    assert find_file(tmp_path / "raw", "x") is None
    (tmp_path / "elsewhere/x").unlink()
    (tmp_path / "x").symlink_to("x")
    assert find_file(tmp_path, "x") == tmp_path / "b/c/x"
