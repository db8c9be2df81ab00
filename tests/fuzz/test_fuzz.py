"""Every parser of outside files refuses broken inputs; the guard detects each kind of fault."""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diffusion.system.errors import DiffctlError
from tests.fuzz import data_files, documents, guard, models
from tests.fuzz.guard import CodeRun, TooSlow, guarded
from tests.fuzz.mutators import Parser, mutate

PARSERS = {**data_files.PARSERS, **models.PARSERS, **documents.PARSERS}
CORPUS = Path(__file__).parent / "corpus"
# Where a disk takes 10 ms to remove a folder, memory allows five times the inputs.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
INPUTS = int(os.environ.get("FUZZ_INPUTS", "500"))


def read(parser: Parser, data: bytes, *, is_guarded: bool = True) -> str:
    """Read an input in a folder of its own; return the DiffctlError, which must be one short sentence."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, warnings.catch_warnings(action="ignore"):
        path = Path(folder) / parser.name
        path.write_bytes(data)
        limits = guarded(path.parent) if is_guarded else contextlib.nullcontext()
        try:
            with pytest.MonkeyPatch.context() as patch, limits:
                patch.setattr(tempfile, "tempdir", folder)
                parser.parse(path)
        except DiffctlError as error:
            assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
            assert len(str(error)) <= 2000  # noqa: PT017
            return str(error)
    return ""


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_are_read_and_earlier_failures_refused(name: str) -> None:
    parser = PARSERS[name]
    assert sum(map(len, parser.seeds())) < 1 << 20, "large seeds make few inputs a second"
    import_lazily(name)
    for data in parser.seeds():
        assert not read(parser, data)
    for path in (CORPUS / name).glob("*"):
        read(parser, path.read_bytes())


@cache
def import_lazily(name: str) -> None:
    """Read the seeds once without the guard: what is imported first changes the process."""
    for data in PARSERS[name].seeds():
        read(PARSERS[name], data, is_guarded=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
@settings(
    max_examples=INPUTS,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(rng=st.randoms(use_true_random=False), is_repaired=st.booleans())
def test_broken_input_is_refused(name: str, rng: object, is_repaired: bool) -> None:
    parser = PARSERS[name]
    import_lazily(name)
    data = mutate(rng, parser.seeds(), parser.mutators)
    read(parser, parser.repair(data) if is_repaired else data)


def _suppressed() -> None:
    with contextlib.suppress(BaseException):
        os.system("true")


FAULTS: dict[str, tuple[Callable[[Path], object], type[BaseException]]] = {
    "memory": (lambda path: bytearray(8 << 30), MemoryError),
    "shell with suppressed exceptions": (lambda path: _suppressed(), CodeRun),
    "write outside": (lambda path: (path.parent.parent / "other").write_bytes(b""), CodeRun),
    "hang": (lambda path: time.sleep(600), TooSlow),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_guard_detects(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "hang":
        monkeypatch.setattr(guard, "SECONDS", 0.5)
    parse, kind = FAULTS[fault]
    with pytest.raises(kind):
        read(Parser(lambda: [b""], parse), b"content")
