"""Whether a server is older than the package here that talks to it, which it may refuse: a new client says
what an old server does not know. Nothing here imports Prefect or MLflow.
"""

import base64
import http.client
import os
import re
import urllib.request
from importlib.metadata import version
from urllib.parse import urlsplit

from flows.prefect_server.local_servers import PREFECT, ServerKind
from tracking.connectivity import redact_uri

ASK_SECONDS = 5.0
LONGEST = 100  # bytes of a version
NUMBERS = re.compile(r"\d+(\.\d+)+")
VERSION = re.compile(NUMBERS.pattern + r"[\w.+-]*", re.ASCII)


def older(kind: ServerKind, url: str) -> str | None:
    """One sentence where the server at `url` says that it is older; None where it is not, or does not say.

    `url` is what a client is told: with /api of Prefect. A file or a database is no server.
    """
    if not url.startswith(("http://", "https://")):
        return None
    theirs, ours = _version(kind, url), version(kind.name)
    if theirs is None or _numbers(theirs) >= _numbers(ours):
        return None
    return (
        f"{kind.title} at {redact_uri(url)} is version {theirs}, older than the {ours} installed here, whose "
        f"requests it may refuse: bring the server up to date, or install {kind.name}=={theirs} here"
    )


def _version(kind: ServerKind, url: str) -> str | None:
    """What the server says; None where it says nothing that is a version."""
    place = redact_uri(url).rstrip("/") + kind.version.removeprefix(kind.api)
    try:
        asked = urllib.request.Request(place, headers=_who(kind, url))
        with urllib.request.urlopen(asked, timeout=ASK_SECONDS) as reply:
            said = reply.read(LONGEST).decode(errors="replace").strip().strip('"')
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return said if VERSION.fullmatch(said) else None


def _numbers(text: str) -> list[int]:
    found = NUMBERS.match(text)
    return [int(part) for part in found[0].split(".")] if found else []


def _who(kind: ServerKind, url: str) -> dict[str, str]:
    """The header that says who asks, by the variables that the server's own client reads."""
    if kind is PREFECT:
        pair, token = os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    else:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
        inside = urlsplit(url).netloc.rpartition("@")[0]
        pair = f"{user}:{password}" if user and password else inside
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if pair:
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
