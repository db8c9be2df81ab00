"""Requests that schemathesis derives from the OpenAPI schema, with one more check of its own."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import schemathesis

ROOT = Path(__file__).parent.parent.parent
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "shows_no_traceback",
)
PER_ROUTE = 2  # two routes take a body and get nearly all cases


class Attacked(Exception):
    """A response violated a check; the message is schemathesis's report."""


def attack(url: str, cases: int, seed: int = 0) -> int:
    """Send about `cases` requests and return the number sent; raise Attacked for a wrong response."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--url", url]
    command += ["--checks", ",".join(CHECKS), "--seed", str(seed), "--max-examples", str(cases // PER_ROUTE)]
    command += ["--phases", "coverage,fuzzing", "--warnings", "off", "--request-timeout", "60", "--no-color"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.helpers.openapi_attack"}
    with tempfile.TemporaryDirectory() as folder:  # for schemathesis's own files
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    sent = re.search(r"(\d+) generated", done.stdout)
    if done.returncode or sent is None:
        raise Attacked(done.stdout + done.stderr)
    return int(sent[1])


SIGNS = ("Traceback (most recent call last)", 'File "/', "site-packages", ".py")


@schemathesis.check
def shows_no_traceback(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Fail if a response contains a traceback, a file name or source code."""
    sent = str(case.body)
    shown = [sign for sign in SIGNS if sign.encode() in response.content and sign not in sent]
    assert not shown, f"the response contains {shown}"
