"""Addresses to bind, and token files."""

import socket

import pytest

from diffusion.system.errors import DiffctlError, UsageError
from serving.http_server import bind_socket, read_token


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_token(host):
    with bind_socket(host, 0, has_token=False) as at:
        assert at.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_needs_a_token(host):
    with pytest.raises(UsageError):
        bind_socket(host, 0, has_token=False)
    with bind_socket(host, 0, has_token=True) as at:
        assert at.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["", "256.1.1.1", "x" * 300, "\udcff"])
def test_an_unknown_host_is_an_error(host):
    with pytest.raises(UsageError):
        bind_socket(host, 0, has_token=True)


def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DiffctlError, match=str(port)):
            bind_socket("127.0.0.1", port, has_token=False)
    with pytest.raises(DiffctlError):
        bind_socket("192.0.2.1", 0, has_token=True)


def test_a_token_is_read_from_a_readable_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == b"0123456789abcdef"
    with pytest.raises(UsageError):
        read_token(tmp_path / "missing")
    with pytest.raises(DiffctlError):
        read_token(tmp_path)


@pytest.mark.parametrize("text", ["", "short", "two words are no token", "ä" * 20, "x" * 5000, "a\0" * 20])
def test_an_invalid_token_is_refused(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_token(path)
