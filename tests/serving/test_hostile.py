"""Requests derived from the OpenAPI schema by schemathesis."""

import pytest

from diffusion.layout import MODEL
from tests.helpers.openapi_attack import attack
from tests.helpers.server_process import ServerProcess, small_model


@pytest.mark.slow
def test_every_response_conforms_to_the_openapi_schema(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model(MODEL)
    server = ServerProcess(tmp_path, "--max-steps", "20")
    try:
        assert attack(server.url, 40) > 100
        assert server.stop() == 0
        assert server.log.read_text() == ""
    finally:
        server.kill()
