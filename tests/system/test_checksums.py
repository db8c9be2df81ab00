"""JSON from outside becomes the class or one sentence."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from diffusion.system.checksums import JsonObject, parse_json, read_json
from diffusion.system.errors import DiffctlError
from diffusion.system.section import Section, brief


class _Inner(Section):
    size: int = Field(gt=0, le=100)


class _Outer(Section):
    name: str
    inner: _Inner
    many: dict[str, _Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "a", "inner": {"size": ' + "9" * 5000 + "}}", "number out of range"),
        ("[" * 100_000, "recursion limit"),
        ('{"name": "a", "inner": {"size": NaN}}', "inner.size"),
        ('{"name": "a", "inner": {"size": 3, "s": 1}}', "inner.s: unknown key, allowed are size"),
        ('{"name": "a", "inner": {"size": 3}, "many": {"x": {"size": 3, "s": 1}}}', "many.x.s: unknown key"),
        ("", "Invalid JSON"),
    ],
)
def test_errors_are_short(text: str, expected: str) -> None:
    with pytest.raises(DiffctlError) as caught:
        parse_json(text, _Outer, "here")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 500


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "b" * 100}))
    assert read_json(path, JsonObject) == {"a": "b" * 100}
    with pytest.raises(DiffctlError, match="larger than 50 bytes"):
        read_json(path, JsonObject, max_bytes=50)


def test_brief_is_one_short_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief("a\nb") == r"'a\nb'"
    assert len(brief("x" * 10_000)) < 130
    assert brief(10**5000) == "an unprintable int"
    assert brief(deep) == "an unprintable list"
