"""Run a call in a separate process with bounds on memory and time."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from diffusion.system.errors import DiffctlError


def bounded(call: Callable[[], object], megabytes: int = 512, seconds: int = 60) -> str:
    """Return the message of the call's DiffctlError, else its result as text.

    AssertionError for any other exception, also for more memory, and where it takes longer.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        os.write(writer, _outcome(call, megabytes).encode("utf-8", "backslashreplace")[:16384])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        kind, _, text = stream.read().decode().partition(":")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"longer than {seconds} s, or it died: {status}"
    assert kind == "result", text
    return text


def _outcome(call: Callable[[], object], megabytes: int) -> str:
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
        return f"result:{call()}"
    except DiffctlError as error:
        return f"result:{error}"
    except BaseException as error:
        return f"raised:{type(error).__name__}: {error}"
