"""How far a spool was delivered: the file `sent.json` next to it."""

import dataclasses
import os
from pathlib import Path

from pydantic import NonNegativeInt

from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.section import Section
from tracking.connectivity import redact_uri
from tracking.spool.spool_events import read_events, read_lines
from tracking.store import database_file

SENT = "sent.json"


class _SentFile(Section):
    """The content of `sent.json`: a `DeliveryState` without its folder."""

    store: str
    key: str
    run_id: str | None
    offset: NonNegativeInt
    tries: NonNegativeInt
    deleted: bool


@dataclasses.dataclass
class DeliveryState:
    """How far the spool of the training `key` was delivered to `store`: the byte offset, and its run."""

    folder: Path
    store: str
    key: str
    run_id: str | None = None
    offset: int = 0
    tries: int = 0  # of the next upload
    deleted: bool = False  # somebody deleted the run

    @classmethod
    def load(cls, folder: Path, uri: str) -> "DeliveryState":
        """Read `sent.json`; nothing was sent if it is damaged or of another store.

        Nor if it is of another training: a fresh training may start while a sender is at work.
        """
        starts = (event for event in read_events(folder) if event["kind"] == "start")
        nothing = cls(folder, _relative_store(folder, uri), next(starts, {}).get("key", ""))
        try:
            sent = read_checksummed_json(folder / SENT, _SentFile)
        except (FileNotFoundError, DiffctlError):
            return nothing  # sending it again changes nothing
        is_ours = (sent.store, sent.key) == (nothing.store, nothing.key)
        return cls(folder, **sent.model_dump()) if is_ours else nothing

    def save(self) -> None:
        """Write `sent.json`."""
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json(self.folder / SENT, add_checksum(values))

    @property
    def complete(self) -> bool:
        """Whether nothing is left: every complete line was delivered, or the run was deleted."""
        return self.deleted or next(read_lines(self.folder, self.offset), None) is None


def _relative_store(folder: Path, uri: str) -> str:
    """Return the store's URI, relative to the folder for a database in one of its parents.

    A project that was copied or moved together with its database remembers what was delivered.
    """
    database, here = database_file(uri), folder.resolve()
    if database is None or database.resolve().parent not in here.parents:
        return redact_uri(uri)
    return f"sqlite:///{os.path.relpath(database.resolve(), here)}"
