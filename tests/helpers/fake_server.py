"""A small HTTP server on 127.0.0.1 with configured responses, which records requests."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSAL = {"detail": "CSRF protection is disabled."}  # Prefect's 422


@dataclass
class Fake:
    """Its address, and each request's path and Authorization header."""

    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def fake_server(answers: Mapping[str, Any], otherwise: int = 422) -> Iterator[Fake]:
    """Serve JSON by path during the block; other paths get the status `otherwise`."""
    state = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Authorization")))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = answers.get(self.path)
            text = json.dumps(body or REFUSAL)
            self.send_response(otherwise if body is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{web.server_port}"
        try:
            yield state
        finally:
            web.shutdown()
            thread.join()
