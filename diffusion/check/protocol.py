"""Checks of the protocol: deviations from the paper named in `evaluate.protocol`."""

from collections.abc import Iterator

from diffusion.check.findings import Finding, Project
from diffusion.protocol.paper_protocols import PROTOCOLS, mismatches


def check_protocol(project: Project) -> Iterator[Finding]:
    """Report every field that the paper states otherwise, and its notes; nothing without a protocol."""
    name = project.config.evaluate.protocol
    if name is None:
        return
    found = mismatches(name, project.config.model_dump(mode="json"))
    remedy = f"`diffctl use --protocol {name}` sets what can be set; or leave evaluate.protocol out"
    for one in found:
        yield Finding("warning", f"protocol {name}", str(one), remedy)
    if not found:
        yield Finding("ok", f"protocol {name}", f"as {PROTOCOLS[name].paper}")
    for besides in PROTOCOLS[name].besides:
        yield Finding("ok", f"protocol {name}", besides)
