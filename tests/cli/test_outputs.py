"""Refusals of every command: wrong use, unusable outputs, unreachable servers, errors of files."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from cli import main
from cli.main import app
from diffusion.layout import LOSS_CURVE, READ, TRAIN_RUNS
from diffusion.system.errors import REFUSED, TEMPORARY, printable
from tests.helpers.invoke import Invoke, Result, assert_refused
from tests.helpers.mlflow_server import free_port
from tracking.spool.event_log import Spool

# The suffix of the output and the command line; PATH is replaced by the output's path.
OUTPUTS = {
    "sample": (".png", ["sample", "--out", "PATH"]),
    "edit": (".png", ["edit", "a.png", "--upscale", "2", "--out", "PATH"]),
    "encode": (".npz", ["encode", "-o", "PATH"]),
    "interpolate": (".gif", ["interpolate", "0", "1", "--out", "PATH"]),
    "nll": (".png", ["nll", "--out", "PATH"]),
    "show": (".svg", ["show", "reverse", "--out", "PATH"]),
    "import": (".safetensors", ["import", "openai", "a.pt", "--preset", "adm-64", "--out", "PATH"]),
    "compare": (".html", ["compare", "a", "b", "--html", "PATH"]),
    "seeds": (".html", ["seeds", "--html", "PATH"]),
    "export": ("", ["export", "diffusers", "PATH"]),
    "publish": ("", ["publish", "hub", "me/model", "--dry-run", "PATH"]),
}
WORK = (
    *(f"images.{name}.selected_source" for name in ("sampled_images", "edited_images", "image_analysis")),
    "images.image_analysis.selected_model",
    "images.figures.selected_source",
    "models.model_formats.selected_model",
    "models.model_formats.import_openai",
    "models.publication.selected_source",
    "actions.scores.run_comparison.load_scored",
    "actions.scores.run_comparison.read_scores",
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
        monkeypatch.setattr(f"cli.{name}", work)
    return lambda command, path: invoke(*(path if part == "PATH" else part for part in OUTPUTS[command][1]))


@pytest.mark.parametrize("command", OUTPUTS)
def test_output_is_usable_or_refused_before_any_work(command: str, run: Callable[..., Result]) -> None:
    suffix = OUTPUTS[command][0]
    Path("file").touch()
    for name in (f"file/a{suffix}", f"two\nlines/../file/a{suffix}", "."):
        assert_refused(run(command, name), printable(name))
    if suffix not in ("", ".html", ".safetensors"):
        assert_refused(run(command, "a.txt"), suffix)
    with pytest.raises(Worked):
        run(command, f"new/a{suffix}")
    assert not os.path.exists(f"new/a{suffix}")


KINDS = {".png": b"\x89PNG\r\n", ".gif": b"GIF89a", ".npz": b"PK\3\4", ".svg": b"<?xml"}
KINDS |= {".html": b"<!doctype html>\n", ".safetensors": bytes(8) + b"{"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in OUTPUTS if OUTPUTS[name][0]])
def test_no_output_replaces_a_file_that_is_read_or_of_another_kind(command: str, run, invoke) -> None:
    suffix = OUTPUTS[command][0]
    Path("params.yaml").touch()
    links = {}
    for number, kept in enumerate(READ):
        file = kept if kept.suffix else kept / f"file{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(KINDS[suffix])
        links[file] = Path(f"link{number}{suffix}")
        links[file].symlink_to(file)
    for file, link in links.items():
        assert_refused(run(command, str(file)), str(file))
        assert_refused(run(command, str(link)), f"{link} is a file that diffctl reads: name another file")
    for content in [b"mine", *(one for kind, one in KINDS.items() if kind != suffix)]:
        Path(f"mine{suffix}").write_bytes(content)
        assert_refused(run(command, f"mine{suffix}"), f"is no {suffix[1:].upper()} file", "--force")
        with pytest.raises(Worked):
            invoke(*OUTPUTS[command][1][:-1], f"mine{suffix}", "--force")
    Path(f"mine{suffix}").write_bytes(KINDS[suffix])
    with pytest.raises(Worked):
        run(command, f"mine{suffix}")


def test_csv_next_to_a_plot_is_checked_too(run: Callable[..., Result]) -> None:
    Path("plots").mkdir()
    for name in ("params.yaml", LOSS_CURVE):
        Path(name).touch()
    assert_refused(run("nll", "plots/loss.png"), "loss.csv is a file that diffctl reads")
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
        def app(obj: object) -> None:
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


class Row(NamedTuple):
    """Arguments that name something missing, and arguments that need MLflow, if the command does."""

    absent: tuple[str, ...]
    asking: tuple[str, ...] | None = None


OUT, RUN, MODEL = ("--out", "x.png"), ("--run-id", "abc"), ("--model", "no.safetensors")
LACKING = ("reference", "train", "classifier", "sample", "evaluate", "report")  # stages without their input
COMMANDS = {
    **dict.fromkeys(("deploy", "emit data-changed", "seeds"), Row(())),
    **{f"stage {name}": Row(()) for name in LACKING},
    **dict.fromkeys(
        ("down", "status", "check", "schema", "stage code", "stage data", "prune"), Row(("no-such-argument",))
    ),
    **dict.fromkeys(("sync", "history"), Row(("no-such-argument",), ())),
    **dict.fromkeys(("sweep", "nll", "serve", "playground"), Row(MODEL, RUN)),
    **dict.fromkeys(("show reverse", "show model"), Row(MODEL, RUN)),
    **dict.fromkeys(("show forward", "show variance"), Row(("--steps", "20"))),  # notebooks now
    "show steps": Row(("--profile", "no-such-profile")),
    "show samplers": Row(("--steps", "0")),
    "init": Row(("elsewhere", "--profile", "no-such-profile")),
    "upgrade": Row(()),
    "docs": Row(("no-such-page",)),
    "run": Row(("--push",)),  # no DVC remote
    "ui": Row(("--port", "0")),
    "up": Row(("--mlflow-port", "0")),
    "search": Row(("--name", "no/name")),
    "search-trial": Row(("no-such-folder",)),
    "use": Row(("no-such-profile",)),
    "set": Row(("no-such-key=1",)),
    "verdict": Row(("no-such-key=1",)),
    "weights inception": Row(("no-such-file",)),
    "sample": Row((*MODEL, *OUT), (*RUN, *OUT)),
    "edit": Row(("no.png", "--colorize", *MODEL, *OUT), ("no.png", "--colorize", *RUN, *OUT)),
    "evaluate": Row(("no-such-folder", "--against", "no-such-store")),
    "ema": Row(("--sigma-rel", "0.1", "--from", "no-such-folder")),
    "grid": Row(("--steps", "4,x", *MODEL), RUN),
    "encode": Row(("no.png", *MODEL, "--out", "x.npz"), ("0", *RUN, "--out", "x.npz")),
    "interpolate": Row(("no.png", "0", *MODEL, *OUT), ("0", "1", *RUN, *OUT)),
    "compare": Row(("no.json", "no-either.json"), ("a", "b")),
    "promote": Row(("--force",), ("1",)),  # no reason given
    "rollback": Row(("--to", "0"), ()),
    "runs": Row(("no-such-command",), ()),
    "runs reap": Row(("--no-such-option",), ("abc",)),
    "import diffusers": Row(("no-such-folder",)),
    "import openai": Row(("no.pt", "--preset", "ddpm-cifar10", "--out", "x.safetensors")),
    "export diffusers": Row(("folder", *MODEL), ("folder", *RUN)),
    "publish hub": Row(("me/model", *MODEL), ("me/model", *RUN)),
}


def commands() -> list[str]:
    """Return every command of the application; a group counts if it does something alone."""
    found, waiting = [], [((), get_command(app))]
    while waiting:
        path, entry = waiting.pop()
        below = getattr(entry, "commands", {})
        waiting += [((*path, name), sub) for name, sub in below.items()]
        if path and (not below or entry.invoke_without_command):
            found.append(" ".join(path))
    return found


def test_table_contains_every_command() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_input_is_wrong_use(name: str, project: Path, invoke: Invoke) -> None:
    done = invoke(*name.split(), *COMMANDS[name].absent)
    assert done.code == REFUSED, done.err
    assert done.err.startswith(("diffctl: ", "Usage: ")) or done.err.count("\n") < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if row.asking is not None])
def test_unreachable_mlflow_is_a_temporary_error(name, project, invoke, monkeypatch) -> None:
    port = free_port()
    Spool(TRAIN_RUNS / ("f" * 16), "key", "a-run", "diffctl-digits").close("FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    done = invoke(*name.split(), *COMMANDS[name].asking or ())
    assert_refused(done, f"MLflow does not answer at http://127.0.0.1:{port} ", code=TEMPORARY)
    assert "secret" not in done.out + done.err


def test_unreachable_prefect_is_a_temporary_error(project, invoke, monkeypatch) -> None:
    (project / ".dvc").mkdir()
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:1/api")
    done = invoke("run")
    assert_refused(done, "PREFECT_API_URL=http://127.0.0.1:1/api", code=TEMPORARY)
