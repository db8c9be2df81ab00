"""Fuzzing of one parser: a forked child reads broken inputs under limits until it ends or one kills it."""

import faulthandler
import hashlib
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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType

from diffusion.system.errors import DiffctlError
from tests.conftest import ROOT
from tests.fuzz.guard import CodeRun, Guard
from tests.fuzz.mutators import MAX_BYTES, each_value_swapped, mutate

CORPUS = Path(__file__).parent / "corpus"
MAX_KEPT = 64 << 10  # bytes of an input in the corpus
SECONDS = 10  # time limit of one input
SPARE_BYTES = 2 << 30  # address space beyond that of a child at its start
# Where a disk takes 10 ms to remove a folder, memory allows five times the inputs.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MAX_POOL = 500  # inputs with a new refusal, from which others are made
MAX_DEATHS = 20  # of children, after which a campaign ends
FAILED = 70  # exit code of a child if the driver failed
_HEAD = struct.Struct("<QQ")  # inputs tried, length of the current one
_PIECES = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|[-\d.e+]+")


@dataclass(frozen=True)
class Finding:
    """An input, the fault of its reader (`raises`, `hang`, `crash`, `code`), and where."""

    data: bytes
    kind: str
    what: str
    where: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for inputs with the same fault."""
        return self.kind, self.what.partition(":")[0], self.where


@dataclass
class Campaign:
    """Result: number of inputs, and one finding per fault."""

    parser: str
    tried: int = 0
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.parser}: {self.tried:,} inputs, {len(self.findings)} findings"]
        lines += [f"  {one.kind} {one.what} in {one.where}" for one in self.findings.values()]
        return "\n".join(lines)


def run(parser: ModuleType, inputs: int, seconds: float, seed: int = 0) -> Campaign:
    """Try that many inputs, or as many as the time allows; replace a child that dies."""
    campaign, until, deaths = Campaign(name_of(parser)), time.monotonic() + seconds, 0
    while campaign.tried < inputs and time.monotonic() < until and deaths < MAX_DEATHS:
        first = campaign.tried == 0
        work = search(seed + campaign.tried, inputs - campaign.tried, until, in_order=first)
        tried, found = _in_child(parser, work, until)
        campaign.tried += tried
        for finding in found:
            deaths += finding.kind in ("hang", "crash")
            campaign.findings.setdefault(finding.key, finding)
    return campaign


def replay_inputs(parser: ModuleType, inputs: Sequence[bytes]) -> list[Finding]:
    """Return the findings of these inputs, up to one that ends the process."""

    def work(worker: "Worker") -> None:
        for data in inputs:
            worker.report(worker.find(data))

    return _in_child(parser, work, time.monotonic() + 60)[1]


def corpus(parser: ModuleType) -> list[bytes]:
    """Return the inputs that were findings once."""
    return [path.read_bytes() for path in sorted((CORPUS / name_of(parser)).glob("*"))]


def keep(parser: ModuleType, finding: Finding) -> Path | None:
    """Store a finding in the corpus; None if it is too large."""
    if len(finding.data) > MAX_KEPT:
        return None
    path = CORPUS / name_of(parser) / hashlib.sha256(finding.data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    return path


def name_of(parser: ModuleType) -> str:
    """Return the parser's name."""
    return parser.__name__.rpartition(".")[2]


def _in_child(
    parser: ModuleType, work: Callable[["Worker"], None], until: float
) -> tuple[int, list[Finding]]:
    child = Child(parser, work)
    try:
        found = list(child.findings(until))
        return child.tried, found
    finally:
        child.close()


class Child:
    """A child process and its shared memory: number of inputs tried, and the current one."""

    def __init__(self, parser: ModuleType, work: Callable[["Worker"], None]) -> None:
        self.shared = mmap.mmap(-1, _HEAD.size + MAX_BYTES)
        self.folder = Path(tempfile.mkdtemp(prefix="diffctl-fuzz-", dir=MEMORY))
        self.stopped = False
        self.ours, theirs = Pipe(duplex=False)
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(Worker(parser, self.shared, self.folder, theirs), work)
        theirs.close()

    def findings(self, until: float) -> Iterator[Finding]:
        """Yield findings until the child ends; its death is the last one."""
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
            if now > max(until, since) + SECONDS + 5 and not self.stopped:  # its own watchdog failed
                os.kill(self.pid, signal.SIGKILL)
                self.stopped = True
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == FAILED:
            raise AssertionError("the driver failed, or a seed cannot be read: see above")
        if code:
            yield self._death(code)

    def close(self) -> None:
        """Remove the child's files."""
        self.ours.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def tried(self) -> int:
        """Number of inputs that were started."""
        return int(_HEAD.unpack_from(self.shared)[0])

    def _death(self, code: int) -> Finding:
        _, length = _HEAD.unpack_from(self.shared)
        data = self.shared[_HEAD.size : _HEAD.size + length]
        log = (self.folder / "watchdog").read_text(errors="replace")
        hung = code == -signal.SIGALRM or self.stopped
        what = f"longer than {SECONDS} s" if hung else f"ended with {code}"
        return Finding(data, "hang" if hung else "crash", what, _innermost_of_log(log))


class Worker:
    """The child's side."""

    def __init__(self, parser: ModuleType, shared: mmap.mmap, folder: Path, out: Connection) -> None:
        self.parser, self.shared, self.out = parser, shared, out
        self.place, self.log = folder / "in", folder / "watchdog"
        self.tried, self.refusal = 0, ""
        self.place.mkdir()
        self.log_file = open(self.log, "w")  # noqa: SIM115 (for the child's life)
        self.guard: Guard | None = None

    def begin(self) -> None:
        """Read the seeds, so that lazy imports happen; then set the limits."""
        faulthandler.enable(file=self.log_file)
        # The stack is logged, then the process ends: a Python handler would wait for the hanging call.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=self.log_file, all_threads=False, chain=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.place)
        warnings.simplefilter("ignore")
        for data in self.parser.seeds():
            self._read(data)
        self.guard = Guard(self.place, getattr(self.parser, "EXPECTED", ()))
        for data in self.parser.seeds():
            self.report(self.find(data))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def report(self, finding: Finding | None) -> None:
        """Send a finding to the parent."""
        if finding is not None:
            self.out.send(finding)

    def find(self, data: bytes) -> Finding | None:
        """Return the fault in how one input is read."""
        self.tried += 1
        _HEAD.pack_into(self.shared, 0, self.tried, len(data))
        self.shared[_HEAD.size : _HEAD.size + len(data)] = data
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.refusal = ""
            self._read(data)
        except DiffctlError as error:
            self.refusal = str(error)
            if "\n" in self.refusal or len(self.refusal) > 2000:
                return Finding(data, "raises", "a message that is not one sentence", _innermost(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # any other exception is a finding
            kind = "code" if isinstance(error, CodeRun) else "raises"
            return Finding(data, kind, f"{type(error).__name__}: {str(error)[:200]}", _innermost(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.guard is not None and self.guard.seen:  # the guard's exception was caught
            return Finding(data, "code", f"CodeRun: {self.guard.seen[0]}", self.guard.seen[0])
        return None

    def _read(self, data: bytes) -> None:
        for entry in os.scandir(self.place):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        path = self.place / getattr(self.parser, "NAME", "input")
        path.write_bytes(data)
        if self.guard is not None:
            self.guard.start()
        try:
            self.parser.parse(path)
        finally:
            if self.guard is not None:
                self.guard.stop()


def search(seed: int, inputs: int, until: float, in_order: bool) -> Callable[[Worker], None]:
    """Return a child's work: broken inputs by that seed, up to a number or a time.

    With `in_order`, each value in the seeds' JSON is replaced first.
    """

    def work(worker: Worker) -> None:
        rng, parser = random.Random(seed), worker.parser
        seeds, pool, refusals = parser.seeds(), list(parser.seeds()), set()
        largest = 2 * max(map(len, seeds))  # else inputs grow, and there are fewer of them
        repair = getattr(parser, "repair", None)
        first = (data for one in seeds for data in each_value_swapped(one)) if in_order else iter(())
        while worker.tried < inputs and time.monotonic() < until:
            data = next(first, None)
            if is_random := data is None:
                data = mutate(rng, pool if rng.random() < 0.5 else seeds, getattr(parser, "MUTATORS", ()))
            if repair is not None and (not is_random or rng.random() < 0.7):
                data = repair(data)
            worker.report(worker.find(data[:MAX_BYTES]))
            refusal = _PIECES.sub("", worker.refusal)
            if refusal not in refusals and len(refusals) < MAX_POOL and len(data) < largest:
                refusals.add(refusal)
                pool.append(data)

    return work


def _run_child(worker: Worker, work: Callable[[Worker], None]) -> None:
    """Run the work and exit: the exit handlers of a test runner must not run here."""
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
    """Return the innermost function of the project in the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    if not frames:
        return "?"
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}"


def _innermost_of_log(log: str) -> str:
    """Return the innermost function of the project in the watchdog's log, which has it first."""
    for name, function in re.findall(r'File "([^"]+)", line \d+ in (\S+)', log):
        if _is_ours(name):
            return f"{Path(name).relative_to(ROOT)}:{function}"
    return "?"


def _is_ours(name: str) -> bool:
    return name.startswith(f"{ROOT}/") and not name.startswith(
        (f"{ROOT}/tests/fuzz/harness", f"{ROOT}/.venv")
    )
