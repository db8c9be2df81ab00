"""Settings of Prefect as environment variables: the home folder of this project and quiet clients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(".prefect")
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
BUSY = "another `diffctl run` is running in this folder: wait for it, or stop it with Ctrl-C there"

CLIENT_SETTINGS = {
    "PREFECT_API_REQUEST_TIMEOUT": "10",  # a server that hangs delays nothing for minutes
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # telemetry logs errors about a locked database
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the flows print what the user needs
}


def home_settings(home: Path) -> dict[str, str]:
    """Return the settings of a server, or of its client, that keeps all files in the absolute path `home`."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
    }


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of this process and its children for the block, then restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
