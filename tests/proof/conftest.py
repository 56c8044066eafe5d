"""Counts what the proof tried, and prints the table; whatever did not run, or too few cases, is a failure."""

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.proof.promises import TRIALS

ALLOWED_VARIABLE = "OTEL_TBOT_PROOF_WITHOUT_NAMESPACES"
"""Set to 1 where the machine allows no namespaces: their cases are then listed as not possible, and are no failure."""

NOT_POSSIBLE = "not possible here"


class Cases:
    """How many cases a test has tried so far."""

    def __init__(self) -> None:
        self.counted: defaultdict[str, int] = defaultdict(int)

    def add(self, number: int = 1, *, trial: str = "") -> None:
        """Counts *number* more, of another *trial* where the same test tries that, too."""
        self.counted[trial] += number


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[Cases]:
    """For tests that try many; without it a test is one case."""
    counted = Cases()
    yield counted
    own = request.node.get_closest_marker("promise").args[0]
    request.node.user_properties.append(("cases", {key or own: number for key, number in counted.counted.items()}))


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Ends a test where the machine allows no namespaces of its own, nor another user, which takes root as well."""
    command = ["unshare", "--uts", "--net", "--mount", "true"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.skip(f"{NOT_POSSIBLE}: {finished.stderr.strip()}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here belongs to a row of the table."""
    for item in items:
        marker = item.get_closest_marker("promise")
        if marker is None or marker.args[0] not in TRIALS:
            raise pytest.UsageError(f"{item.nodeid}: must be marked with a row of TRIALS")
        item.user_properties.append(("trial", marker.args[0]))


class _Table:
    def __init__(self) -> None:
        self.cases: defaultdict[str, int] = defaultdict(int)
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.impossible: set[str] = set()
        self.is_partial = False

    def add(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        trial = properties.get("trial")
        if trial is None:
            return
        if report.skipped and NOT_POSSIBLE in str(report.longrepr) and os.environ.get(ALLOWED_VARIABLE) == "1":
            self.impossible.add(trial)
        elif report.skipped:
            self.faults[trial].append(f"not run: {report.nodeid}")
        elif report.failed:
            self.faults[trial].append(f"failed: {report.nodeid}")
        elif report.when == "teardown":
            # Only a test that passed in full counts.
            for key, number in properties.get("cases", {trial: 1}).items():
                self.cases[key] += number

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        for key, trial in TRIALS.items():
            yield trial.promise, trial.tried, f"{self.cases[key]:,}", self.judge(key)

    def judge(self, key: str) -> str:
        if self.faults[key]:
            return "FAILED"
        if key in self.impossible:
            return NOT_POSSIBLE.upper()
        if self.cases[key] < TRIALS[key].least:
            return f"FAILED: fewer than {TRIALS[key].least:,} cases"
        return "holds"

    def is_held(self) -> bool:
        return not any(self.judge(key).startswith("FAILED") for key in TRIALS)


_table = _Table()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps what became of each test."""
    _table.add(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A promise that does not hold, or was not tried in full, is a failure of the whole."""
    if not hasattr(session.config, "workerinput") and not _table.is_held():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    rows = [("promise", "how it was tried", "cases", "result"), *_table.rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    terminalreporter.section("the proof")
    for row in rows:
        padded = (f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}", f"{row[2]:>{widths[2]}}", row[3])
        terminalreporter.write_line("  ".join(padded).rstrip())
    for key, faults in _table.faults.items():
        for fault in faults:
            terminalreporter.write_line(f"{key}: {fault}")
    terminalreporter.write_line("every promise holds" if _table.is_held() else "NOT every promise holds")
