"""What several tests of scores share: an extractor, a reference, random weights, and no network."""

import socket

import pytest

from diffusion.evaluate.features.reference_features import make_reference
from tests.helpers.digits_sweep import effnet, make_config, write_prepared
from tests.helpers.torch_fidelity_adapter import write_random_inception


@pytest.fixture(scope="session")
def extractor():
    """Return the bundled extractor."""
    return effnet()


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Return a folder, never to be changed, with real digits in `prepared` and their `reference`."""
    root = tmp_path_factory.mktemp("real")
    write_prepared(root / "prepared")
    make_reference(make_config().evaluate, root / "prepared", root / "reference")
    return root


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """Return a file with random Inception weights, and its SHA-256."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, write_random_inception(path)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Refuse all sockets and use an empty torch hub cache, which is returned."""

    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"
