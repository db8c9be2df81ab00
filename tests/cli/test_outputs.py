"""Output paths: each command checks them before its work and names them in its error."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import main
from diffusion.system.errors import printable
from tests.helpers import generated_paths as at
from tests.helpers.generated_paths import Place
from tests.helpers.invoke import Result, assert_refused

# The suffix of the output and the command line; PATH is replaced by the output's path.
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

Fail = Callable[[Exception], Result]


class Worked(Exception):
    """The work has begun, so the output was accepted."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each command at its first step after the check of its output."""

    def work(*_: object, **__: object) -> None:
        raise Worked

    for module in ("sampled_images", "image_analysis", "model_formats", "figures"):
        monkeypatch.setattr(f"cli.actions.{module}.selected_model", work)
    monkeypatch.setattr("cli.actions.model_formats.import_openai", work)
    monkeypatch.setattr("cli.actions.run_comparison.load_scored", work)
    monkeypatch.setattr("cli.actions.run_comparison.read_scores", work)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Result:
    """Run the command; the exit code is None if the work has begun."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffctl", *arguments])
        capsys.readouterr()
        try:
            main.main()
        except Worked:
            code = None
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, *capsys.readouterr())


def refused(command: str, path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the sentence by which the command refuses the path."""
    done = run([path if part == "PATH" else part for part in COMMANDS[command][1]], capsys)
    assert_refused(done)
    return done.err


@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)), place=at.places)
def test_output_is_usable_or_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], data: st.DataObject, command: str, place: Place
) -> None:
    suffix, arguments = COMMANDS[command]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = place(Path(scratch), data.draw(at.names(suffix)))
        except OSError:  # it cannot be made
            return
        before = at.tree(Path(scratch))
        done = run([path if part == "PATH" else part for part in arguments], capsys)
        assert at.tree(Path(scratch)) == before
        if done.code is not None:
            assert_refused(done, printable(path))


@pytest.mark.parametrize("name", ["", "-", "x/", "."])
def test_name_that_is_no_file_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert name in refused("seeds", name, capsys)


def test_name_that_is_no_new_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "folder" in refused("export", "", capsys)
    assert "FOLDER ." in refused("export", ".", capsys)
    assert run(["export", "diffusers", "new/"], capsys).code is None


def test_tilde_is_the_home_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").mkdir()
    assert f"--html {tmp_path}/taken is a folder" in refused("seeds", "~/taken", capsys)


@pytest.mark.parametrize("command", ["sample", "encode", "interpolate", "nll", "show"])
def test_unknown_suffix_is_refused(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert COMMANDS[command][0] in refused(command, "a.txt", capsys)


def test_csv_next_to_a_plot_is_checked_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    assert f"{tmp_path}/a.csv" in refused("nll", str(tmp_path / "a.png"), capsys)


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Let a command fail with an error; return its exit code and output."""

    def fail(error: Exception) -> Result:
        def app() -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "app", app)
            return run([], capsys)

    return fail


CLOSED_PIPES = {32, 108}
UNUSED = {41, 58}


@given(
    number=st.sampled_from(sorted(set(range(1, 134)) - CLOSED_PIPES - UNUSED)),
    name=st.none() | st.text() | st.binary(min_size=1),
)
def test_file_system_error_is_one_sentence(errors: Fail, number: int, name: str | bytes | None) -> None:
    words = os.strerror(number)
    done = errors(OSError(number, words) if name is None else OSError(number, words, name))
    assert_refused(done, words, "" if name is None else printable(os.fsdecode(name)), code=1)


def test_file_error_without_a_number_is_a_sentence_and_a_programming_error_is_not(errors: Fail) -> None:
    assert_refused(errors(OSError("image file is\ntruncated")), "OSError: image file is truncated", code=1)
    for mistake in (io.UnsupportedOperation("not readable"), KeyError("x"), ValueError("y")):
        with pytest.raises(type(mistake)):
            errors(mistake)
