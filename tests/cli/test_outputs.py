"""Every command that writes where a person says: the place is tried before the work, and named."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli import main
from cli.shared.flags import LONGEST
from diffusion.system.errors import printable
from tests.helpers import places as at
from tests.helpers.places import Place

# Each command line with the suffix of what it writes; PATH stands for the place.
COMMANDS = {
    "sample": (".png", ["sample", "--out", "PATH"]),
    "sample gif": (".gif", ["sample", "-o", "PATH"]),
    "sample npz": (".npz", ["sample", "--out", "PATH"]),
    "encode": (".npz", ["encode", "--out", "PATH"]),
    "interpolate": (".png", ["interpolate", "0", "1", "--out", "PATH"]),
    "nll": (".png", ["nll", "--out", "PATH"]),
    "show": (".svg", ["show", "reverse", "--out", "PATH"]),
    "import": (".safetensors", ["import", "openai", "a.pt", "--preset", "adm-64", "--out", "PATH"]),
    "compare": (".html", ["compare", "a", "b", "--html", "PATH"]),
    "seeds": (".html", ["seeds", "--html", "PATH"]),
    "export": ("", ["export", "diffusers", "--", "PATH"]),
}

Fail = Callable[[Exception], tuple[int | None, str]]


class Worked(Exception):
    """The work has begun: the place was found good."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command does first after trying its output ends it."""

    def work(*_: object, **__: object) -> None:
        raise Worked

    for module in ("sample", "nll", "images", "interop"):
        monkeypatch.setattr(f"cli.commands.{module}.resolve_model", work)
    monkeypatch.setattr("cli.shared.configuration.resolve_model", work)
    monkeypatch.setattr("diffusion.interop.openai.import_openai", work)
    monkeypatch.setattr("tracking.compare.load_scored", work)
    monkeypatch.setattr("diffusion.protocol.scores.read_scores", work)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | None, str]:
    """The exit code, None where the work has begun, and what stands on stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffctl", *arguments])
        capsys.readouterr()
        try:
            main.main()
        except Worked:
            return None, capsys.readouterr().err
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)), place=at.places)
def test_a_place_is_good_or_told_in_one_sentence_before_any_work(
    capsys: pytest.CaptureFixture[str], data: st.DataObject, command: str, place: Place
) -> None:
    suffix, arguments = COMMANDS[command]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = place(Path(scratch), data.draw(at.names(suffix)))
        except OSError:  # not even the place can be made
            return
        before = at.tree(Path(scratch))
        code, said = run([path if part == "PATH" else part for part in arguments], capsys)
        assert at.tree(Path(scratch)) == before
        if code is not None:
            assert code == 2
            assert said.startswith("diffctl: ")
            assert printable(path) in said or len(path) > LONGEST
            assert said.count("\n") == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "export"])
@pytest.mark.parametrize("given_name", ["", "-", "x/", "./", ".", "..", "/"])
def test_what_names_no_file_is_told(
    capsys: pytest.CaptureFixture[str], command: str, given_name: str
) -> None:
    code, said = run([given_name if part == "PATH" else part for part in COMMANDS[command][1]], capsys)
    assert code == 2
    assert said.startswith("diffctl: ")
    assert said.count("\n") == 1
    assert given_name in said


def test_what_names_no_new_folder_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", "diffusers", ""], capsys) == (2, "diffctl: '' names no folder: give one\n")
    in_use = "diffctl: FOLDER . is in use and cannot be replaced: give a new folder\n"
    assert run(["export", "diffusers", "."], capsys) == (2, in_use)
    assert run(["export", "diffusers", "new/"], capsys)[0] is None


@pytest.mark.parametrize(
    "command", [name for name, (suffix, _) in COMMANDS.items() if suffix not in ("", ".html", ".safetensors")]
)
def test_a_suffix_that_nothing_writes_is_told(capsys: pytest.CaptureFixture[str], command: str) -> None:
    arguments = ["a.txt" if part == "PATH" else part for part in COMMANDS[command][1]]
    code, said = run(arguments, capsys)
    assert code == 2
    assert said.startswith("diffctl: --out a.txt: give a file that ends in .")


def test_the_values_beside_a_plot_are_tried_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    code, said = run(["nll", "--out", str(tmp_path / "a.png")], capsys)
    assert (code, said) == (2, f"diffctl: --out, as .csv, {tmp_path}/a.csv is a folder: name a file\n")


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Let a command fail with an error: (exit code, stderr)."""

    def fail(error: Exception) -> tuple[int | None, str]:
        def app() -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "app", app)
            return run([], capsys)

    return fail


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.sampled_from(
        sorted(set(range(1, 134)) - {32, 41, 58, 108})
    ),  # 32, 108: a pipe's reader is gone
    name=st.none() | st.text() | st.binary(min_size=1),
)
def test_every_error_of_a_file_system_is_one_sentence(
    errors: Fail, number: int, name: str | bytes | None
) -> None:
    error = (
        OSError(number, os.strerror(number)) if name is None else OSError(number, os.strerror(number), name)
    )
    code, said = errors(error)
    assert code == 1
    assert said.startswith("diffctl: ")
    assert said.count("\n") == 1
    assert os.strerror(number) in said
    assert name is None or printable(os.fsdecode(name)) in said


def test_what_a_library_says_of_a_file_without_a_number_is_one_sentence(errors: Fail) -> None:
    assert errors(OSError("image file is\ntruncated")) == (1, "diffctl: OSError: image file is truncated\n")


def test_a_mistake_in_the_program_keeps_its_traceback(errors: Fail) -> None:
    for mistake in (io.UnsupportedOperation("not readable"), KeyError("x"), ValueError("y")):
        with pytest.raises(type(mistake)):
            errors(mistake)
