"""A real HTTP server on 127.0.0.1 for files, with the faults that downloads meet."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves `files` by path; `faults` are used up in order, one per request."""

    files: dict[str, bytes]
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    port: int = 0

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of every request so far."""
        return [header for _, header in self.requests]


@contextmanager
def serving(files: dict[str, bytes], *faults: str) -> Iterator[FileServer]:
    """Run a server for the block."""
    state = FileServer(files, list(faults))

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.state = state
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state = self.server.state
        state.requests.append((self.path, self.headers.get("Range")))
        content = state.files.get(self.path.lstrip("/"))
        if content is None:
            return self._status(404)
        fault = state.faults.pop(0) if state.faults else ""
        if fault.isdigit():
            return self._status(int(fault))
        if fault == "hang":
            threading.Event().wait(20)  # longer than the client's timeout
        return self._send(content, fault)

    def _status(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, fault: str) -> None:
        header = None if "no ranges" in fault else self.headers.get("Range")
        start = int(header.removeprefix("bytes=").rstrip("-")) if header else 0
        if header and start >= len(content):
            return self._status(416)
        body = content[start:]
        if fault == "wrong byte":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if "no length" in fault:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        _, cut, at = fault.partition("cut")
        end = int(at.removeprefix(" at ") or len(body) // 2) if cut else len(body)
        self.wfile.write(body[:end])
        self.close_connection = True
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
