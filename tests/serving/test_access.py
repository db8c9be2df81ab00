"""Who may reach a server: addresses, token files, tokens, the Host rule, and the size of bodies."""

import asyncio
import socket
from functools import partial

import pytest
from starlette.testclient import TestClient

from diffusion.system.errors import DiffctlError, UsageError
from serving.app import create_app
from serving.http_server import bind_socket, read_token
from serving.middleware import AccessMiddleware, BodyLimitMiddleware
from tests.helpers.server_process import published, service_of

TOKEN = "a-token-of-the-test-0123456789"


@pytest.fixture(scope="module")
def app(model):
    return create_app(service_of(published(model)), TOKEN.encode())


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401), ("", 401), ("Bearer", 401), (f"Basic {TOKEN}", 401), (f"Bearer {TOKEN}x", 401),
        ("Bearer \xff", 401), (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200),
    ],
)  # fmt: skip
def test_every_route_but_health_requires_the_token(app, given, status):
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with TestClient(app, "http://anywhere.example") as client:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == status
            assert TOKEN not in answer.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200


def status_of(middleware, headers: list[tuple[bytes, bytes]], *messages: dict) -> int:
    """The status from the middleware around an application that returns 200."""
    sent, left = [], list(messages)

    async def inner(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict:
        return left.pop(0)

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/models", "headers": headers}
    asyncio.run(middleware(inner)(scope, receive, send))
    return sent[0]["status"]


LOCAL = ["localhost", "LocalHost:8080", "127.0.0.1", "127.1.2.3:8080", "[::1]", "[::1]:8080"]
FOREIGN = [
    "evil.example", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost:",
    "[::1]x", "evil.com@127.0.0.1", "127.0.0.1, evil.com", "\xff", "１27.0.0.1",
]  # fmt: skip


def test_only_one_well_formed_loopback_host_is_accepted():
    for hosts in [*([host] for host in (*LOCAL, *FOREIGN)), [], ["localhost", "evil.example"]]:
        headers = [(b"host", host.encode("utf-8")) for host in hosts]
        wanted = 200 if len(hosts) == 1 and hosts[0] in LOCAL else 421
        assert status_of(partial(AccessMiddleware, token=None), headers) == wanted, hosts


def test_a_body_in_chunks_is_limited_in_total():
    chunk = {"type": "http.request", "body": bytes(1024), "more_body": True}
    for count, status in ((63, 200), (64, 413)):
        assert status_of(BodyLimitMiddleware, [], *[chunk] * count, {**chunk, "more_body": False}) == status


@pytest.mark.parametrize(("host", "is_public"), [
    ("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True),
])  # fmt: skip
def test_only_a_public_address_needs_a_token(host, is_public):
    if is_public:
        with pytest.raises(UsageError):
            bind_socket(host, 0, has_token=False)
    with bind_socket(host, 0, has_token=is_public) as at:
        assert at.getsockname()[1] > 0


def test_an_unknown_host_and_a_taken_port_are_errors():
    for host in ("", "256.1.1.1", "x" * 300, "\udcff"):
        with pytest.raises(UsageError):
            bind_socket(host, 0, has_token=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DiffctlError, match=str(port)):
            bind_socket("127.0.0.1", port, has_token=False)
    with pytest.raises(DiffctlError):
        bind_socket("192.0.2.1", 0, has_token=True)


def test_only_a_readable_file_with_one_long_word_has_a_token(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == b"0123456789abcdef"
    for text in ("", "short", "two words are no token", "ä" * 20, "x" * 5000, "a\0" * 20):
        path.write_text(text)
        with pytest.raises(UsageError):
            read_token(path)
    with pytest.raises(UsageError):
        read_token(tmp_path / "missing")
    with pytest.raises(DiffctlError):
        read_token(tmp_path)
