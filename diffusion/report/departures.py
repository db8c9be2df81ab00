"""Where a run departs from the paper's protocol that it names, for the page."""

from typing import Any

from diffusion.config import Config
from diffusion.protocol.paper_protocols import PROTOCOLS, mismatches


def departures_content(config: Config) -> dict[str, Any] | None:
    """The template's variables: the paper, the fields that differ, what no field says; None without one."""
    name = config.evaluate.protocol
    if name is None:
        return None
    rows = [one._asdict() for one in mismatches(name, config.model_dump(mode="json"))]
    return {"paper": PROTOCOLS[name].paper, "rows": rows, "besides": PROTOCOLS[name].besides}
