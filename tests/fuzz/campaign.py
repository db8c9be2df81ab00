"""A parser under broken inputs, and the corpus of those that were findings."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from tests.fuzz.worker import Child, Finding, Worker, replay, search

CORPUS = Path(__file__).parent / "corpus"
MAX_KEPT = 64 << 10  # bytes of an input in the corpus
MINIMISING = 20.0  # seconds for each finding
ALIKE = 20  # findings of one kind after which a child is not started again


@dataclass
class Campaign:
    """What came of it: how many inputs, and the findings, each kind once."""

    parser: str
    tried: int = 0
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.parser}: {self.tried:,} inputs, {len(self.findings)} findings"]
        lines += [f"  {one.kind} {one.what} in {one.where}" for one in self.findings.values()]
        return "\n".join(lines)


def run(parser: ModuleType, inputs: int, seconds: float, seed: int = 0) -> Campaign:
    """Try so many inputs, or as many as the time allows; a child that dies is followed by another."""
    name = name_of(parser)
    made, until, deaths = Campaign(name), time.monotonic() + seconds, 0
    while made.tried < inputs and time.monotonic() < until and deaths < ALIKE:
        work = search(seed + made.tried, inputs - made.tried, until, in_order=made.tried == 0)
        tried, found = _in_child(parser, work, until)
        made.tried += tried
        for one in found:
            deaths += one.kind in ("hang", "crash")
            if one.known_by not in made.findings:
                made.findings[one.known_by] = one
    return made


def replayed(parser: ModuleType, inputs: Sequence[bytes]) -> list[Finding]:
    """What is wrong with how these inputs are read; after one that ends the process come no others."""
    return _in_child(parser, replay(inputs), time.monotonic() + 60)[1]


def corpus(parser: ModuleType) -> list[bytes]:
    """The inputs that were findings once."""
    return [path.read_bytes() for path in sorted((CORPUS / name_of(parser)).glob("*"))]


def keep(parser: ModuleType, finding: Finding) -> Path | None:
    """Make a finding small and keep it in the corpus; None where it stays too large."""
    small = minimised(parser, finding)
    if len(small) > MAX_KEPT:
        return None
    path = CORPUS / name_of(parser) / hashlib.sha256(small).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(small)
    return path


def minimised(parser: ModuleType, finding: Finding) -> bytes:
    """A part of the input that finds the same, as small as a few tries make it."""
    data, until, size = finding.data, time.monotonic() + MINIMISING, max(1, len(finding.data) // 2)
    if finding.kind in ("hang", "crash"):  # each try would cost a child
        return data
    while size and time.monotonic() < until:
        shorter = [data[:at] + data[at + size :] for at in range(0, len(data), size)][:200]
        same = [one for one in replayed(parser, shorter) if one.known_by == finding.known_by]
        if same:
            data = min((one.data for one in same), key=len)
        size = min(size, len(data)) if same and size > 1 else size // 2
    return data


def name_of(parser: ModuleType) -> str:
    """What a parser is called."""
    return parser.__name__.rpartition(".")[2]


def _in_child(parser: ModuleType, work: Callable[[Worker], None], until: float) -> tuple[int, list[Finding]]:
    child = Child(parser, work)
    try:
        found = list(child.findings(until))
        return child.tried, found
    finally:
        child.close()
