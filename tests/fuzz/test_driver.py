"""The driver detects each kind of fault in a small parser."""

import contextlib
import ctypes
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from diffusion.system.errors import DiffctlError
from tests.fuzz import harness
from tests.fuzz.harness import replay_inputs, run
from tests.fuzz.mutators import PROBES, broken_json, each_value_swapped, mutate

SEED = json.dumps({"size": 3, "name": "a", "deep": [1, {"b": 2}]}).encode()


def planted(misbehave: Callable[[bytes, Path], object]) -> ModuleType:
    """Return a parser that misbehaves for every input except its seed."""

    def parse(path: Path) -> None:
        data = path.read_bytes()
        if data != SEED:
            misbehave(data, path)
            raise DiffctlError("it is broken")

    module = ModuleType("planted")
    module.seeds, module.parse = lambda: [SEED], parse  # type: ignore[attr-defined]
    return module


def _write_outside(data: bytes, path: Path) -> None:
    (path.parent.parent / "elsewhere").write_bytes(data)


def _run_suppressed(data: bytes, path: Path) -> None:
    with contextlib.suppress(BaseException):
        os.system("true")


def _allocate(data: bytes, path: Path) -> None:
    bytearray(8 << 30)


FAULTS: dict[str, tuple[Callable[[bytes, Path], object], str, str]] = {
    "unexpected exception": (lambda data, path: {}["a"], "raises", "KeyError"),
    "memory": (_allocate, "raises", "MemoryError"),
    "shell": (lambda data, path: os.system("true"), "code", "CodeRun"),
    "shell with suppressed exceptions": (_run_suppressed, "code", "CodeRun"),
    "process": (lambda data, path: subprocess.run(["true"]), "code", "CodeRun"),
    "code": (lambda data, path: eval("1 + 1"), "code", "CodeRun"),
    "unknown module": (lambda data, path: __import__("colorsys_of_nobody"), "code", "CodeRun"),
    "write outside": (_write_outside, "code", "CodeRun"),
    "rename to outside": (lambda data, path: os.rename(path, path.parent.parent / "x"), "code", "CodeRun"),
    "segmentation fault": (lambda data, path: ctypes.string_at(0), "crash", "ended with -11"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_fault_is_found(what: str) -> None:
    misbehave, kind, message = FAULTS[what]
    made = run(planted(misbehave), inputs=50, seconds=20)
    assert {finding.kind for finding in made.findings.values()} == {kind}, made
    assert message in next(iter(made.findings.values())).what


def test_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 1)
    hanging = planted(lambda data, path: time.sleep(3600))
    (finding,) = replay_inputs(hanging, [b"x"])
    assert (finding.kind, finding.where.rpartition(":")[2]) == ("hang", "<lambda>")


def test_refusal_is_no_finding() -> None:
    made = run(planted(lambda data, path: path.with_name("other").write_bytes(data)), inputs=300, seconds=60)
    assert (made.tried, made.findings) == (300, {})


def test_dead_child_is_replaced() -> None:
    made = run(planted(lambda data, path: os._exit(3) if len(data) % 7 == 0 else None), inputs=60, seconds=60)
    assert made.tried == 60
    assert [finding.what for finding in made.findings.values()] == ["ended with 3"]


def test_inputs_depend_on_the_seed() -> None:
    first, second = (mutate(random.Random(5), [SEED]) for _ in range(2))
    assert first == second


def test_broken_json_is_mostly_valid_and_different() -> None:
    tree, whole, other = json.loads(SEED), 0, 0
    for seed in range(200):
        text = broken_json(random.Random(seed), json.loads(SEED))
        try:
            other += json.loads(text) != tree
            whole += 1
        except (ValueError, RecursionError):
            pass
    assert whole > 120
    assert other > 100


def test_each_json_value_is_replaced() -> None:
    inner = json.dumps({"a": {"b": 1}})
    header = json.dumps({"__metadata__": {"key": inner}, "w": {"dtype": "F32"}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + b"payload"
    for data in (inner.encode(), b'{"a": {"b": 1}}\n{"c": 2}\n', tensors):
        made = list(each_value_swapped(data))
        assert len(set(made)) >= 2 * len(PROBES)
        assert any(b"NaN" in one for one in made)
    assert all(one.endswith(b"payload") for one in made)
