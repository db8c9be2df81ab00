"""A forked child that reads broken inputs one after another, under limits, until it ends or dies of one."""

import faulthandler
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType

from diffusion.system.errors import DiffctlError
from tests.conftest import ROOT
from tests.fuzz.guard import CodeRun, Guard
from tests.fuzz.mutators import MAX_BYTES, each_value_swapped, mutate

SECONDS = 10  # that one input may take
SPARE_BYTES = 2 << 30  # of address space beyond what a child has at its start
# Where a disk takes 10 ms to remove a folder, memory makes five times the inputs.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
POOL = 500  # inputs that were refused in a new way, from which others are made
FAILED = 70  # a child's exit code when it is not an input's fault
_HEAD = struct.Struct("<QQ")  # inputs tried, length of the one at work
_PIECES = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|[-\d.e+]+")


@dataclass(frozen=True)
class Finding:
    """An input, what its reader did (`raises`, `hang`, `crash`, `code`), and where."""

    data: bytes
    kind: str
    what: str
    where: str

    @property
    def known_by(self) -> tuple[str, str, str]:
        """Equal for inputs that find the same."""
        return self.kind, self.what.partition(":")[0], self.where


class Child:
    """A child and what it shares: how many inputs it has tried, and which one is at work."""

    def __init__(self, parser: ModuleType, work: Callable[["Worker"], None]) -> None:
        self.shared = mmap.mmap(-1, _HEAD.size + MAX_BYTES)
        self.folder = Path(tempfile.mkdtemp(prefix="diffctl-fuzz-", dir=MEMORY))
        self.stopped = False
        self.ours, theirs = Pipe(duplex=False)
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(Worker(parser, self.shared, self.folder, theirs), work)
        theirs.close()

    def findings(self, until: float) -> Iterator[Finding]:
        """What it finds until it ends; its own death is the last."""
        seen, since = self.tried, time.monotonic()
        while True:
            try:
                if self.ours.poll(0.2):
                    yield self.ours.recv()
            except EOFError:
                break
            now = time.monotonic()
            if self.tried != seen:
                seen, since = self.tried, now
            if now > max(until, since) + SECONDS + 5 and not self.stopped:  # not even its watchdog ended it
                os.kill(self.pid, signal.SIGKILL)
                self.stopped = True
        _, status = os.waitpid(self.pid, 0)
        if os.waitstatus_to_exitcode(status) == FAILED:
            raise AssertionError("the driver itself failed, or a seed cannot be read: see above")
        if os.waitstatus_to_exitcode(status):
            yield self._death(os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Remove what it wrote."""
        self.ours.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def tried(self) -> int:
        """How many inputs it began."""
        return int(_HEAD.unpack_from(self.shared)[0])

    def _death(self, code: int) -> Finding:
        _, length = _HEAD.unpack_from(self.shared)
        data = self.shared[_HEAD.size : _HEAD.size + length]
        log = (self.folder / "watchdog").read_text(errors="replace")
        hung = code == -signal.SIGALRM or self.stopped
        what = f"longer than {SECONDS} s" if hung else f"ended with {code}"
        return Finding(data, "hang" if hung else "crash", what, _innermost_of_log(log))


class Worker:
    """What runs in the child."""

    def __init__(self, parser: ModuleType, shared: mmap.mmap, folder: Path, out: Connection) -> None:
        self.parser, self.shared, self.out = parser, shared, out
        self.place, self.log = folder / "in", folder / "watchdog"
        self.tried = 0
        self.place.mkdir()
        self.log_file = open(self.log, "w")  # noqa: SIM115 (for the child's life)
        self.guard: Guard | None = None

    def begin(self) -> None:
        """Read the seeds, so that what is loaded late is loaded; from then on the limits hold."""
        faulthandler.enable(file=self.log_file)
        # Told where it hangs, then it ends: a handler in Python would wait for the call that hangs.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=self.log_file, all_threads=False, chain=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.place)
        warnings.simplefilter("ignore")
        for data in self.parser.seeds():
            self._read(data)
        self.guard = Guard(self.place, getattr(self.parser, "EXPECTED", ()))
        for data in self.parser.seeds():
            if (found := self.find(data)) is not None:
                self.out.send(found)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def find(self, data: bytes) -> Finding | None:
        """What is wrong with how one input is read."""
        self.tried += 1
        _HEAD.pack_into(self.shared, 0, self.tried, len(data))
        self.shared[_HEAD.size : _HEAD.size + len(data)] = data
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.said = ""
            self._read(data)
        except DiffctlError as error:
            self.said = str(error)
            if "\n" in self.said or len(self.said) > 2000:
                return Finding(data, "raises", "a message that is no sentence", _innermost(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever it is, it is what this looks for
            kind = "code" if isinstance(error, CodeRun) else "raises"
            return Finding(data, kind, f"{type(error).__name__}: {str(error)[:200]}", _innermost(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.guard is not None and self.guard.seen:  # somebody caught what the guard raised
            return Finding(data, "code", f"CodeRun: {self.guard.seen[0]}", self.guard.seen[0])
        return None

    def _read(self, data: bytes) -> None:
        for entry in os.scandir(self.place):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        path = self.place / getattr(self.parser, "NAME", "input")
        path.write_bytes(data)
        if self.guard is not None:
            self.guard.watch()
        try:
            self.parser.parse(path)
        finally:
            if self.guard is not None:
                self.guard.rest()


def search(seed: int, inputs: int, until: float, in_order: bool) -> Callable[[Worker], None]:
    """A child's work: broken inputs by that seed, until there were so many or the time is over.

    `in_order`: first each value of the seeds' JSON in each other form.
    """

    def work(worker: Worker) -> None:
        rng, parser = random.Random(seed), worker.parser
        seeds, pool, ways = parser.seeds(), list(parser.seeds()), set()
        largest = 2 * max(map(len, seeds))  # else the inputs grow, and there are few of them
        repair = getattr(parser, "repair", None)
        first = (data for one in seeds for data in each_value_swapped(one)) if in_order else iter(())
        while worker.tried < inputs and time.monotonic() < until:
            data = next(first, None)
            if chosen := data is None:
                data = mutate(rng, pool if rng.random() < 0.5 else seeds, getattr(parser, "MUTATORS", ()))
            if repair is not None and (not chosen or rng.random() < 0.7):
                data = repair(data)
            if (found := worker.find(data[:MAX_BYTES])) is not None:
                worker.out.send(found)
            way = _PIECES.sub("", worker.said)
            if way not in ways and len(ways) < POOL and len(data) < largest:  # refused as none before
                ways.add(way)
                pool.append(data)

    return work


def replay(inputs: Sequence[bytes]) -> Callable[[Worker], None]:
    """A child's work: these inputs as they are."""

    def work(worker: Worker) -> None:
        for data in inputs:
            if (found := worker.find(data)) is not None:
                worker.out.send(found)

    return work


def _be_child(worker: Worker, work: Callable[[Worker], None]) -> None:
    """Never returns: what a test runner does at its end is not this process's to do."""
    code = FAILED
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        worker.begin()
        work(worker)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _innermost(error: BaseException) -> str:
    """Where in the project it was raised, as file and function."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    if not frames:
        return "?"
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}"


def _innermost_of_log(log: str) -> str:
    """The same of what the watchdog wrote, the innermost call first."""
    for name, function in re.findall(r'File "([^"]+)", line \d+ in (\S+)', log):
        if _is_ours(name):
            return f"{Path(name).relative_to(ROOT)}:{function}"
    return "?"


def _is_ours(name: str) -> bool:
    return name.startswith(f"{ROOT}/") and not name.startswith((f"{ROOT}/tests/fuzz/worker", f"{ROOT}/.venv"))
