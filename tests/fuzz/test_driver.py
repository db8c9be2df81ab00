"""The driver finds what it is there for: each kind of misconduct, planted in a small parser."""

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
from tests.fuzz import worker
from tests.fuzz.campaign import minimised, replayed, run
from tests.fuzz.mutators import PROBES, broken_json, each_value_swapped, mutate

SEED = json.dumps({"size": 3, "name": "a", "deep": [1, {"b": 2}]}).encode()


def planted(misbehave: Callable[[bytes, Path], object]) -> ModuleType:
    """A parser that does that with all that is not its seed."""

    def parse(path: Path) -> None:
        data = path.read_bytes()
        if data != SEED:
            misbehave(data, path)
            raise DiffctlError("it is broken")

    module = ModuleType("planted")
    module.seeds, module.parse = lambda: [SEED], parse  # type: ignore[attr-defined]
    return module


def _leave(data: bytes, path: Path) -> None:
    (path.parent.parent / "elsewhere").write_bytes(data)


def _quietly(data: bytes, path: Path) -> None:
    with contextlib.suppress(BaseException):
        os.system("true")


def _take(data: bytes, path: Path) -> None:
    bytearray(8 << 30)


MISCONDUCT: dict[str, tuple[Callable[[bytes, Path], object], str, str]] = {
    "an error of no kind of ours": (lambda data, path: {}["a"], "raises", "KeyError"),
    "memory": (_take, "raises", "MemoryError"),
    "a shell": (lambda data, path: os.system("true"), "code", "CodeRun"),
    "a shell, hushed up": (_quietly, "code", "CodeRun"),
    "a process": (lambda data, path: subprocess.run(["true"]), "code", "CodeRun"),
    "code": (lambda data, path: eval("1 + 1"), "code", "CodeRun"),
    "a module": (lambda data, path: __import__("colorsys_of_nobody"), "code", "CodeRun"),
    "a file elsewhere": (_leave, "code", "CodeRun"),
    "a file that goes": (lambda data, path: os.rename(path, path.parent.parent / "x"), "code", "CodeRun"),
    "its end": (lambda data, path: ctypes.string_at(0), "crash", "ended with -11"),
}


@pytest.mark.parametrize("what", MISCONDUCT)
def test_misconduct_is_found(what: str) -> None:
    misbehave, kind, said = MISCONDUCT[what]
    made = run(planted(misbehave), inputs=50, seconds=20)
    assert {finding.kind for finding in made.findings.values()} == {kind}, made
    assert said in next(iter(made.findings.values())).what


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 1)
    hanging = planted(lambda data, path: time.sleep(3600))
    (finding,) = replayed(hanging, [b"x"])
    assert (finding.kind, finding.where.rpartition(":")[2]) == ("hang", "<lambda>")


def test_what_refuses_and_writes_in_its_folder_is_no_finding() -> None:
    made = run(planted(lambda data, path: path.with_name("other").write_bytes(data)), inputs=300, seconds=60)
    assert (made.tried, made.findings) == (300, {})


def test_a_child_that_dies_is_followed_by_another() -> None:
    made = run(planted(lambda data, path: os._exit(3) if len(data) % 7 == 0 else None), inputs=60, seconds=60)
    assert made.tried == 60
    assert [finding.what for finding in made.findings.values()] == ["ended with 3"]


@pytest.mark.slow
def test_a_finding_is_made_small() -> None:
    def misbehave(data: bytes, path: Path) -> None:
        assert b"needle" not in data

    parser = planted(misbehave)
    (found,) = replayed(parser, [b"a" * 300 + b"needle" + b"b" * 500])
    assert minimised(parser, found) == b"needle"


def test_a_seed_decides_the_inputs() -> None:
    first, second = (mutate(random.Random(5), [SEED]) for _ in range(2))
    assert first == second


def test_broken_json_is_mostly_json_and_seldom_what_it_was() -> None:
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


def test_each_value_is_swapped_wherever_its_json_is() -> None:
    inner = json.dumps({"a": {"b": 1}})
    header = json.dumps({"__metadata__": {"key": inner}, "w": {"dtype": "F32"}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + b"payload"
    for data in (inner.encode(), b'{"a": {"b": 1}}\n{"c": 2}\n', tensors):
        made = list(each_value_swapped(data))
        assert len(set(made)) >= 2 * len(PROBES)
        assert any(b"NaN" in one for one in made)
    assert all(one.endswith(b"payload") for one in made)
