"""A real PostgreSQL for tests: a cluster of its own on a free port of 127.0.0.1."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import free_port

PLACES = "/usr/lib/postgresql/*/bin/initdb"  # Debian's, not on PATH
SERVANT = "postgres"  # root may not run a server: Debian's user for it


def find_binaries() -> Path | None:
    """The folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = shutil.which("initdb") or max(map(str, Path("/").glob(PLACES[1:])), default=None)
    return Path(found).parent if found else None


@contextmanager
def postgres(password: str | None = None) -> Iterator[str]:
    """The URI of an empty database, until the block ends; skips the test where it cannot be had.

    With a password none is let in without it; the URI does not hold it.
    """
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (pip install 'diffctl[server]')")
    user = SERVANT if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="diffctl-postgres-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        port = free_port()

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "-D", f"{folder}/data", *arguments]
            with open(Path(folder) / "log", "ab") as log:
                subprocess.run(command, user=user, cwd=folder, check=True, stdout=log, stderr=log)

        made = ["--username=diffctl", "--encoding=UTF8", "--no-sync", "--locale=C.UTF-8"]
        if password is None:
            run("initdb", "--auth=trust", *made)
        else:
            secret = Path(folder) / "password"
            secret.write_text(password)
            run("initdb", "--auth=scram-sha-256", f"--pwfile={secret}", *made)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "-w", "-o", options, "-l", f"{folder}/server.log")
        try:
            yield f"postgresql+psycopg://diffctl@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
