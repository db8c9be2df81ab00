"""A real OpenSSH server for tests: on a free port of 127.0.0.1, with keys and settings of its own."""

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffusion.system.processes import group_processes, terminate
from tests.helpers.mlflow_server import free_port
from tests.helpers.waiting import wait_until

PRIVILEGES = Path("/run/sshd")  # an empty folder that the server wants when root starts it
SETTINGS = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Ssh:
    """Where the server is, who is let in and by which key."""

    port: int
    user: str
    key: Path


@contextmanager
def ssh_server(folder: Path) -> Iterator[Ssh]:
    """The server, until the block ends; skips the test where OpenSSH's is not installed."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("sshd is not installed (Debian: apt-get install openssh-server)")
    if os.getuid() == 0:
        PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / name], check=True
        )
    made = Ssh(free_port(), getpass.getuser(), folder / "user")
    (folder / "settings").write_text(SETTINGS.format(port=made.port, folder=folder))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", folder / "settings"], stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: _answers(made.port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield made
    finally:
        terminate(group_processes(process.pid))
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
