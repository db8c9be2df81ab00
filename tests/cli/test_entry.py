"""The process of a command: signals, messages, progress lines, completion, output that is not read."""

import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fcntl import ioctl
from itertools import count
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from cli import main
from cli.shared.command import CommandOptions
from cli.shared.console import print_line, progress
from cli.shared.process import outcome_of
from diffusion.layout import FORCED
from diffusion.protocol.scores_document import write_scores_document
from diffusion.system.errors import Interrupted
from diffusion.system.files import write_text
from diffusion.system.registry import load_reference
from diffusion.system.signals import StopRequest
from tests.conftest import ROOT, command, diffctl, environment, run_python, write_params
from tests.helpers.invoke import Invoke
from tests.helpers.scores_document import document


@pytest.mark.parametrize(("number", "sent"), [(3, signal.SIGINT), (30, signal.SIGTERM), (180, signal.SIGINT)])
def test_signal_during_the_first_imports_prints_no_traceback(number: int, sent: signal.Signals) -> None:
    moment = {"MOMENT": f"use none:import:{number}:{sent.value}"}
    done = run_python(ROOT, "-m", "tests.helpers.stop_at_event", "use", "none", env=moment)
    assert (done.returncode, done.stdout) == (128 + sent, "")
    assert not done.stderr or done.stderr.startswith(f"diffctl: stopped by {sent.name}")


ENTRY = """
from diffusion.data.data_config import SOURCES, SourceEntry
SOURCES["mine"] = SourceEntry("plugins.data.mine:build")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "arguments", "status", "message"),
    [
        (
            "raise SystemExit(0)",
            "--help",
            2,
            "diffctl: plugins/__init__.py, line 1: SystemExit: 0: correct it",
        ),
        ("raise KeyboardInterrupt", "--help", 130, ""),
        (ENTRY, "stage data", 2, "diffctl: plugins/data/mine.py, line 2: SystemExit: 0: correct it"),
    ],
)
def test_plugin_that_ends_the_process_fails_the_command(project, entries, arguments, status, message) -> None:
    write_params(project, data={"name": "mine"})
    (project / "plugins/data").mkdir(parents=True)
    (project / "plugins/__init__.py").write_text(entries)
    (project / "plugins/data/mine.py").write_text("def build(config):\n    raise SystemExit(0)")
    done = diffctl(project, *arguments.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", bool(message))
    assert done.stderr.startswith(message)


QUIET = """
import cli.main

def work(obj):
    import logging, warnings
    import matplotlib.figure, matplotlib.font_manager
    logging.getLogger("some.library").warning("for developers")
    warnings.warn("for developers")

cli.main.app = work
cli.main.main()
"""


@pytest.mark.slow
def test_library_warnings_are_not_printed(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"), "/proc/nowhere")
    done = run_python(tmp_path, "-c", QUIET, env=nowhere)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LEAKING = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
complaint = ctypes.c_void_p(libc.strdup(b"nanobind: leaked 4 instances!"))
libc.__cxa_atexit(ctypes.cast(libc.perror, ctypes.c_void_p), complaint, None)
"""
REGISTERING = """
import atexit
from cli import main
app = main.app
main.app = lambda obj: (atexit.register(print, "at the end", file=sys.stderr), app())
main.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses glibc's exit handlers")
def test_cpp_leak_reports_are_hidden_and_python_exit_handlers_are_not(tmp_path: Path) -> None:
    assert "nanobind: leaked" in run_python(tmp_path, "-c", LEAKING).stderr
    assert run_python(tmp_path, "-c", LEAKING + REGISTERING, "--help").stderr == "at the end\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("compare", "s.json", "s.json")])
def test_closed_pipe_is_no_error(arguments: tuple[str, ...], project: Path) -> None:
    write_scores_document(project / "s.json", document())
    code = f"import subprocess; p = subprocess.Popen({command(*arguments)!r}, stdout=subprocess.PIPE)\n"
    done = run_python(project, "-c", code + "p.stdout.close(); raise SystemExit(p.wait())")
    assert (done.returncode, done.stderr) == (0, "")


SCHEMA = ("schema", "-o", "schema.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "closed"),
    [(("runs",), ">&- 2>&-"), (("show", "steps"), ">&-"), (SCHEMA, ">&-"), (SCHEMA, "2>&-")],
)
def test_closed_output_is_no_error(arguments: tuple[str, ...], closed: str, project: Path) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*arguments)]
    done = subprocess.run(shell, cwd=project, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if "schema" in arguments:
        assert (project / "schema.json").read_text().endswith("}\n")


def test_full_disk_behind_stdout_is_one_sentence(project: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("--help"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("diffctl: ")
    assert "Traceback" not in done.stderr


def helps(command: Any, parent: Any = None, name: str = "diffctl") -> Iterator[tuple[str, str]]:
    """Yield the name and the help of a command and of all below it, in 80 columns."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=80)
    yield context.command_path, command.get_help(context)
    for inner, one in getattr(command, "commands", {}).items():
        yield from helps(one, context, inner)


def test_help_is_complete_in_80_columns() -> None:
    texts = dict(helps(typer.main.get_command(main.app)))
    assert len(texts) > 40
    assert [name for name, text in texts.items() if "...\n" in text.partition("\n")[2]] == []
    usages = {name: text.splitlines()[0] for name, text in texts.items()}
    assert usages["diffctl runs reap"] == "Usage: diffctl runs reap [OPTIONS] [RUN]..."
    assert usages["diffctl promote"] == "Usage: diffctl promote [OPTIONS] [VERSION]"
    assert usages["diffctl use"] == "Usage: diffctl use [OPTIONS] [PROFILE]"


def commands_below(base: type[CommandOptions]) -> Iterator[type[CommandOptions]]:
    """Yield the subclasses of `base` that are commands."""
    for options in base.__subclasses__():
        if "body" in vars(options):
            yield options
        yield from commands_below(options)


def test_body_of_each_command_takes_its_options() -> None:
    commands = list(commands_below(CommandOptions))
    assert len(commands) > 40
    for options in commands:
        body = load_reference(options.body)
        (taken,) = (kind for name, kind in get_type_hints(body).items() if name != "return")
        assert issubclass(options, taken), options.body


class Loaded(Exception):
    """The imports have begun."""


def load(*_: object) -> None:
    raise Loaded


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        ("nll", None, "loading the model …\n"),
        ("runs", None, "reading the runs …\n"),
        ("runs --json", None, ""),
        ("stage data", None, "preparing the stage data …\n"),
        ("stage data", "DVC_STAGE", ""),  # set by a process that printed a message already
    ],
)
def test_message_precedes_slow_imports(
    project, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capsys, arguments, variable, message
) -> None:
    for name in ("shared.command.load_reference", "stages.context.enter_stage"):
        monkeypatch.setattr(f"cli.{name}", load)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(Loaded):
        invoke(*arguments.split())
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("show re", "reverse"),
        ("sample --sampler uni", "unipc"),
        ("use imagenet", "imagenet64 imagenet64-adm"),
    ],
)
def test_completes_commands_choices_and_profiles(project, invoke, monkeypatch, words, found) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # so that argv names the program
    monkeypatch.setenv("_DIFFCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"diffctl {words}")
    monkeypatch.setenv("COMP_CWORD", str(1 + words.count(" ")))
    assert invoke().out.split() == found.split()


def test_log_contains_the_last_line_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sample") as show:
        for done in (0, 5, 10, 10):
            show(done, 10, "x 1")
    with progress("nothing"):
        pass
    with pytest.raises(RuntimeError), progress("failed") as show:  # noqa: PT012
        show(3, 10, "")
        raise RuntimeError
    line, failed = capsys.readouterr().err.splitlines()
    assert line.startswith("sample 10/10 · ")
    assert " images/s · took " in line
    assert line.endswith("x 1")
    assert failed.startswith("failed 3/10")


def test_rate_excludes_an_earlier_run(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Two batches of four images a second, after 100 batches of an earlier run."""
    seconds = count(0, 0.5)
    monkeypatch.setattr("cli.shared.console.time.monotonic", lambda: next(seconds))
    with progress("train", per=4) as show:
        for done in range(100, 8001):
            show(done, 8000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 120/8,000 · 8 images/s · ETA 1:05:40"
    assert lines[-1].startswith("train 8,000/8,000 · 8 images/s · took 3950.")


def test_line_above_replaces_the_live_line(monkeypatch, capsys) -> None:
    print_line("data", "plain")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("train") as show:
        show(0, 10)
        print_line("model", "here")
        show(10, 10)
    plain, first, last, _ = capsys.readouterr().err.split("\n")
    assert plain == "data: plain"
    assert first.endswith("train 0/10\r\x1b[Kmodel: here")
    assert last.startswith("\r\x1b[Ktrain 10/10")


def test_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    now = count()
    with monkeypatch.context() as patch, open(writer, "w") as terminal:
        patch.setattr("cli.shared.console.time.monotonic", lambda: float(next(now)))
        patch.setattr("sys.stderr", terminal)
        with progress("steps50-eta0") as show:
            for done in range(5):
                show(done, 1000, "loss 0.0123")
        print("end", file=terminal, flush=True)
        text = ""
        while "end" not in text:  # the terminal delivers it in parts
            text += os.read(reader, 65536).decode()
    lines = text.split("\r\033[K")[1:-1]
    os.close(reader)
    assert lines[0].startswith("steps50-eta0")
    assert all(len(line) < 20 for line in lines)


def test_a_stopped_fresh_training_names_the_command_that_resumes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["diffctl", "stage", "train", "--fresh"])
    stop = StopRequest()
    stop.request()
    with pytest.raises(Interrupted) as end:
        stop.raise_if_set()
    message = "stopped by SIGTERM, saved: `diffctl stage train` resumes here"
    assert outcome_of(end.value).sentence == message
    monkeypatch.setattr(sys, "argv", ["diffctl", "run", "--fresh"])
    monkeypatch.chdir(tmp_path)
    assert outcome_of(end.value).sentence == str(end.value), "nothing is discarded yet"
    write_text(FORCED, "train sample")
    assert outcome_of(end.value).sentence == message.replace("stage train", "run")
