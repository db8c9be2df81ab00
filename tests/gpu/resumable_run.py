"""A pytest run that continues an earlier one: without passed tests, and with failed ones last."""

import json
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parent.parent.parent
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


class ResumableRun:
    """A pytest plugin that runs the tests that have not passed `here`, within a time limit."""

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
        """Deselect passed tests, and run failed ones last."""
        done = [item for item in items if item.nodeid in self.passed]
        config.hook.pytest_deselected(items=done)
        rest = [item for item in items if item.nodeid not in self.passed]
        items[:] = sorted(rest, key=lambda item: item.nodeid in self.failed)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Start no test after the time limit."""
        if time.monotonic() < self._until:
            return None
        self.left += 1
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Skip a test that lacks a package."""
        report = yield
        return _skipped(report, call.excinfo.value if call.excinfo else None)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Skip a test module that lacks a package."""
        report = yield
        excinfo = report.call.excinfo if report.call else None
        return _skipped(report, excinfo.value.__cause__ if excinfo else None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a test's result: that of its call, or a failed teardown."""
        name = report.nodeid
        if report.failed or (report.when == "call" and report.passed):
            for names in (self.passed, self.failed):
                names[:] = [one for one in names if one != name]
            (self.failed if report.failed else self.passed).append(name)
            kept = {"here": self.here, "passed": self.passed, "failed": self.failed}
            self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """Return the record in a file; nothing if it is missing or invalid."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept if {"here", "passed", "failed"} <= set(kept) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _skipped(report: Report, error: BaseException | None) -> Report:
    """Return the report, as skipped if a third-party package is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if not (ROOT / package).exists():
            report.outcome = "skipped"
            report.longrepr = (report.nodeid.partition("::")[0], 0, f"Skipped: {package} is missing")
    return report


def run(session: ResumableRun, arguments: list[str]) -> int:
    """Run pytest with the plugin and print what is left; return 0 if nothing failed."""
    ended = int(pytest.main(["-rs", *arguments], plugins=[session]))
    print(f"{len(session.passed)} tests have passed, as recorded in {session.path}.", end=" ")
    if session.left:
        print(f"{session.left} are left: the same command continues with them.", end=" ")
    print()
    nothing_left = ended == pytest.ExitCode.NO_TESTS_COLLECTED and session.passed
    return 0 if nothing_left else ended
