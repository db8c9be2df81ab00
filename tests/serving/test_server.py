"""Where a server may listen, and what its token must be."""

import socket

import pytest

from diffusion.system.errors import DiffctlError, UsageError
from serving.server import bound_socket, read_token


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_needs_no_token(host):
    with bound_socket(host, 0, has_token=False) as at:
        assert at.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_with_a_token_alone(host):
    with pytest.raises(UsageError, match="open to other machines: give a --token-file"):
        bound_socket(host, 0, has_token=False)
    with bound_socket(host, 0, has_token=True) as at:
        assert at.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["", "256.1.1.1", "x" * 300, "\udcff"])
def test_a_host_that_is_none_is_named(host):
    with pytest.raises(UsageError, match="there is no address"):
        bound_socket(host, 0, has_token=True)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DiffctlError, match=rf"port {port} cannot be had \(Address already in use\)"):
            bound_socket("127.0.0.1", port, has_token=False)


def test_an_address_of_another_machine_is_told():
    with pytest.raises(DiffctlError, match="cannot be had"):
        bound_socket("192.0.2.1", 0, has_token=True)


def test_a_token_is_read_from_its_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == b"0123456789abcdef"


@pytest.mark.parametrize(
    "text", ["", "short", "two words are no token at all", "ä" * 20, "x" * 5000, "a\0" * 20]
)
def test_what_is_no_token_is_refused(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no token: write 16 to 4,096 letters"):
        read_token(path)


def test_a_token_file_that_is_none_is_told(tmp_path):
    with pytest.raises(UsageError, match="no token file at"):
        read_token(tmp_path / "missing")
    with pytest.raises(DiffctlError, match="cannot be read"):
        read_token(tmp_path)
