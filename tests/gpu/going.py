"""pytest going on where an earlier call of it ended, without what has passed; what has failed comes last."""

import json
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parent.parent.parent
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


class Going:
    """A plugin of pytest that goes on with what has not passed `here`, for so many minutes, and keeps it."""

    def __init__(self, path: Path, here: dict[str, str], minutes: float = math.inf) -> None:
        self.path, self.here, self.left = path, here, 0
        self.passed: list[str] = []
        self.failed: list[str] = []
        self._until = time.monotonic() + 60 * minutes
        kept = _read(path)
        if kept.get("here") == here:
            self.passed, self.failed = list(kept["passed"]), list(kept["failed"])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what has passed, and take what has failed last."""
        done = [item for item in items if item.nodeid in self.passed]
        config.hook.pytest_deselected(items=done)
        rest = [item for item in items if item.nodeid not in self.passed]
        items[:] = sorted(rest, key=lambda item: item.nodeid in self.failed)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Begin no test when the time is over."""
        if time.monotonic() < self._until:
            return None
        self.left += 1
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A test that lacks a package is skipped."""
        report = yield
        return _skipped(report, call.excinfo.value if call.excinfo else None)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """As is a module of tests that does."""
        report = yield
        excinfo = report.call.excinfo if report.call else None
        return _skipped(report, excinfo.value.__cause__ if excinfo else None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test came to, which it does with its call, unless its end fails."""
        name = report.nodeid
        if report.failed or (report.when == "call" and report.passed):
            for names in (self.passed, self.failed):
                names[:] = [one for one in names if one != name]
            (self.failed if report.failed else self.passed).append(name)
            kept = {"here": self.here, "passed": self.passed, "failed": self.failed}
            self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """What a file has kept; nothing where it is none of these, or cut off."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept if {"here", "passed", "failed"} <= set(kept) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _skipped(report: Report, error: BaseException | None) -> Report:
    """The report, as one of what was skipped where another project's package was missing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if not (ROOT / package).exists():
            report.outcome = "skipped"
            report.longrepr = (report.nodeid.partition("::")[0], 0, f"Skipped: {package} is missing")
    return report


def run(going: Going, arguments: list[str]) -> int:
    """Run pytest with the plugin and tell what is left; 0 where nothing failed."""
    ended = int(pytest.main(["-rs", *arguments], plugins=[going]))
    print(f"{len(going.passed)} passed so far, as {going.path} has it.", end=" ")
    if going.left:
        print(f"{going.left} are left: the same command goes on with them.", end=" ")
    print()
    nothing_left = ended == pytest.ExitCode.NO_TESTS_COLLECTED and going.passed
    return 0 if nothing_left else ended
