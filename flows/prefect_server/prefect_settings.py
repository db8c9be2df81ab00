"""Where this folder's Prefect keeps its database, leases and settings, and who may use it at a time."""

from pathlib import Path

HOME = Path(".prefect")
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
BUSY = "another `diffctl run` is at work in this folder: wait for it, or stop it with Ctrl-C there"


def home_settings(home: Path) -> dict[str, str]:
    """Prefect's settings for a server, or a client of one, that keeps all in `home`, an absolute path."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
    }
