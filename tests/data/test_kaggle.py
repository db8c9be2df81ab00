"""The real kagglehub against a server like Kaggle's. Its test endpoint has a fixed port."""

import json
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffusion.data.data_config import DataConfig, build_source
from diffusion.data.sources.kaggle import has_kaggle_access
from diffusion.system.errors import DiffctlError, TemporaryError
from diffusion.system.locks import file_lock
from tests.helpers.raw_data import prepared, random_images, write_imagenet, write_mini_imagenet, zip_bytes

pytest.importorskip("kagglehub")
pytestmark = pytest.mark.slow


class Kaggle(BaseHTTPRequestHandler):
    """GetDataset, DownloadDataset and DownloadDataFiles; `archives` by the last part of the handle."""

    archives: dict[str, bytes]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = self.archives.get(body.get("datasetSlug") or body.get("competitionName"), b"")
        kind, status = "zip", 200 if content else 403
        if content and self.path.endswith("GetDataset"):
            kind, content = "json", json.dumps({"currentVersionNumber": 1}).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def signed_in(tmp_path, monkeypatch):
    """A user with a token, without a server; Kaggle's port is reserved for this test."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a token")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("DIFFCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "localhost")
    with file_lock(Path(tempfile.gettempdir()) / "diffctl-test-kaggle.lock", timeout=120):
        yield


@contextmanager
def serving(**archives):
    """Run a server of these archives."""
    Kaggle.archives = archives
    try:
        server = ThreadingHTTPServer(("127.0.0.1", 7777), Kaggle)
    except OSError:
        pytest.skip("port 7777 is taken")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()


def packed(folder):
    """Return a zip of all files of a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return zip_bytes({str(path.relative_to(folder)): path.read_bytes() for path in files})


@pytest.mark.parametrize("name", ["mini-imagenet", "imagenet"])
def test_kaggle_download_is_reused_offline(tmp_path, signed_in, name, monkeypatch):
    """It is in our own cache unless KAGGLEHUB_CACHE is set."""
    monkeypatch.delenv("KAGGLEHUB_CACHE")
    config = {"name": name, "image_size": 16}
    images = random_images(0, 24, 84)
    mini = write_mini_imagenet(tmp_path / "mini", images, ["a", "b", "c", "d"] * 6)
    synsets = {"n01440764": list(images[:3]), "n01443537": list(images[3:6])}
    large = write_imagenet(tmp_path / "large", synsets, [("n01443537", images[6])])
    archives = {"miniimagenet": packed(mini), "imagenet-object-localization-challenge": packed(large)}
    with serving(**archives):
        first, _ = prepared(tmp_path / "first", **config)
        assert build_source(DataConfig(**config)).info().download == 0
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    assert not has_kaggle_access()
    info = build_source(DataConfig(**config)).info()
    assert (info.download, info.blocked) == (0, "")
    second, _ = prepared(tmp_path / "second", **config)
    assert second.digest == first.digest
    assert (tmp_path / "cache/kagglehub").is_dir()


def test_refusal_and_silence_of_kaggle_are_one_sentence(tmp_path, signed_in):
    assert has_kaggle_access()
    source = build_source(DataConfig(name="imagenet", image_size=64))
    with serving(), pytest.raises(DiffctlError, match=r"accept its rules at https://www\.kaggle") as refused:
        source.open()
    with pytest.raises(TemporaryError, match="Kaggle does not answer") as silence:
        source.open()
    assert "\n" not in f"{refused.value}{silence.value}"
    assert str(tmp_path / "cache/imagenet") in str(refused.value)
