"""Repair of a moved or copied project: mlflow.db contains the absolute paths of its artifacts.

Otherwise a moved project does not find its artifacts, and a copy writes into those of the original.
"""

import os
import sqlite3
import warnings
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from diffusion.system.errors import DiffctlWarning

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def repair_artifact_paths(database: Path, artifacts: Path) -> None:
    """Let paths in another folder called like `artifacts`, which is next to `database`, refer to `artifacts`.

    They stay if only the database was copied. DiffctlWarning if any is changed.
    """
    new = artifacts.as_uri()
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        locations: list[tuple[str]] = []
        with suppress(sqlite3.OperationalError):  # not created yet
            query = "SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'diffctl%'"
            locations = connection.execute(query).fetchall()
        for old in {f"{before}/{artifacts.name}" for before in _folders(locations, artifacts.name)} - {new}:
            folder = Path(unquote(urlsplit(old).path))
            if folder.exists() and (not artifacts.exists() or os.path.samefile(folder, artifacts)):
                continue  # the database was copied alone, or the paths differ by a link
            for table, column in COLUMNS:
                change = (
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                )
                connection.execute(change, (new, len(old) + 1, len(old) + 1, f"{old}/"))
            connection.commit()
            text = f"the project was moved or copied: {database} now refers to {artifacts}, not to {folder}"
            warnings.warn(text, DiffctlWarning, stacklevel=4)


def _folders(locations: list[tuple[str]], name: str) -> set[str]:
    """Return the URIs of the folders that contain a folder `name` with these locations."""
    parts = [location.rpartition(f"/{name}/") for (location,) in locations if location]
    return {before for before, found, _ in parts if found and before.startswith("file:///")}
