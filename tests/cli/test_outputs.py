"""Output paths are checked before the work of a command; an error of a file is one sentence."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main
from diffusion.system.errors import printable
from tests.helpers.invoke import Invoke, Result, assert_refused

# The suffix of the output and the command line; PATH is replaced by the output's path.
COMMANDS = {
    "sample": (".png", ["sample", "--out", "PATH"]),
    "encode": (".npz", ["encode", "-o", "PATH"]),
    "interpolate": (".gif", ["interpolate", "0", "1", "--out", "PATH"]),
    "nll": (".png", ["nll", "--out", "PATH"]),
    "show": (".svg", ["show", "reverse", "--out", "PATH"]),
    "import": (".safetensors", ["import", "openai", "a.pt", "--preset", "adm-64", "--out", "PATH"]),
    "compare": (".html", ["compare", "a", "b", "--html", "PATH"]),
    "seeds": (".html", ["seeds", "--html", "PATH"]),
    "export": ("", ["export", "diffusers", "PATH"]),
}
WORK = (
    *(f"{name}.selected_model" for name in ("sampled_images", "image_analysis", "model_formats", "figures")),
    "model_formats.import_openai",
    "run_comparison.load_scored",
    "run_comparison.read_scores",
)


class Worked(Exception):
    """The work has begun, so the output was accepted."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Callable[..., Result]:
    """Run a command with this output up to its first step after the check of the output."""

    def work(*_: object, **__: object) -> None:
        raise Worked

    monkeypatch.chdir(tmp_path)
    for name in WORK:
        monkeypatch.setattr(f"cli.actions.{name}", work)
    return lambda command, path: invoke(*(path if part == "PATH" else part for part in COMMANDS[command][1]))


@pytest.mark.parametrize("command", COMMANDS)
def test_output_is_usable_or_refused_before_any_work(command: str, run: Callable[..., Result]) -> None:
    suffix = COMMANDS[command][0]
    Path("file").touch()
    for name in (f"file/a{suffix}", f"two\nlines/../file/a{suffix}", "."):
        assert_refused(run(command, name), printable(name))
    if suffix not in ("", ".html", ".safetensors"):
        assert_refused(run(command, "a.txt"), suffix)
    with pytest.raises(Worked):
        run(command, f"new/a{suffix}")
    assert not os.path.exists(f"new/a{suffix}")


def test_csv_next_to_a_plot_is_checked_too(run: Callable[..., Result]) -> None:
    Path("a.csv").mkdir()
    assert_refused(run("nll", "a.png"), "a.csv")


def test_tilde_is_the_home_folder(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.getcwd())
    Path("taken").mkdir()
    assert_refused(run("seeds", "~/taken"), f"--html {Path.cwd()}/taken is a folder")


@pytest.fixture
def fail(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], Result]:
    """Let a command fail with an error; return its exit code and output."""

    def fail(error: Exception) -> Result:
        def app() -> None:
            raise error

        monkeypatch.setattr(main, "app", app)
        return invoke()

    return fail


@pytest.mark.parametrize("name", [None, "", "two\nlines", b"\xff"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_file_system_error_is_one_sentence(fail, number, name) -> None:
    words = os.strerror(number)
    done = fail(OSError(number, words) if name is None else OSError(number, words, name))
    assert_refused(done, words, "" if name is None else printable(os.fsdecode(name)), code=1)


def test_programming_error_is_no_sentence(fail: Callable[[Exception], Result]) -> None:
    assert_refused(fail(OSError("image file is\ntruncated")), "OSError: image file is truncated", code=1)
    for mistake in (io.UnsupportedOperation("not readable"), KeyError("x"), ValueError("y")):
        with pytest.raises(type(mistake)):
            fail(mistake)
