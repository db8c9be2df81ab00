"""What schemathesis makes of the OpenAPI, sent to a server: `python -m benchmarks.serving_input`.

| what | promise |
| --- | --- |
| answers of 5xx, with a traceback, or otherwise than the OpenAPI tells | none of 10,000 |
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.serving import ROOT, served, write_model

CASES = 10_000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "shows_no_traceback",
)
PER_ROUTE = 2  # routes that take a body: they get nearly all cases


class Attacked(Exception):
    """An answer was not as it should be; the message is schemathesis's report."""


def attack(url: str, cases: int, seed: int = 0) -> int:
    """Send about so many requests; returns how many were sent, Attacked where an answer is not right."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--url", url]
    command += ["--checks", ",".join(CHECKS), "--seed", str(seed), "--max-examples", str(cases // PER_ROUTE)]
    command += ["--phases", "coverage,fuzzing", "--warnings", "off", "--request-timeout", "60", "--no-color"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "benchmarks.answer_checks"}
    with tempfile.TemporaryDirectory() as folder:  # where it leaves what it has learnt
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    sent = re.search(r"(\d+) generated", done.stdout)
    if done.returncode or sent is None:
        raise Attacked(done.stdout + done.stderr)
    return int(sent[1])


def main() -> None:
    """Print how many requests were sent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=CASES, help="about how many requests")
    cases = parser.parse_args().cases
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "m.safetensors")
        with served(Path(folder) / "m.safetensors") as (address, _):
            try:
                sent = attack(f"http://{address}", cases)
            except Attacked as error:
                sys.exit(str(error))
    print(f"{sent:,} requests: none of 5xx, none with a traceback, all as the OpenAPI says")


if __name__ == "__main__":
    main()
