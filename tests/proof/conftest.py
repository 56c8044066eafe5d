"""Counts the cases that the proof tried, and prints the table; a skipped test and too few cases are failures."""

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.proof.promises import TRIALS

ALLOWED_VARIABLE = "OTEL_TBOT_PROOF_WITHOUT_NAMESPACES"
"""Set this to 1 if the machine allows no namespaces: their cases are then listed as not possible, not as a failure."""

NOT_POSSIBLE = "not possible here"


class Cases:
    """Counts the cases that a test has tried so far."""

    def __init__(self) -> None:
        self.counted: defaultdict[str, int] = defaultdict(int)

    def add(self, number: int = 1, *, trial: str = "") -> None:
        """Counts *number* more cases of *trial*, by default the one that the test is marked with."""
        self.counted[trial] += number


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[Cases]:
    """Counts the cases of a test that tries many; a test without this fixture is one case."""
    counted = Cases()
    yield counted
    own = request.node.get_closest_marker("promise").args[0]
    request.node.user_properties.append(("cases", {key or own: number for key, number in counted.counted.items()}))


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Skips a test if the machine does not allow new namespaces, or another user, for which root is needed too."""
    command = ["unshare", "--uts", "--net", "--mount", "true"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.skip(f"{NOT_POSSIBLE}: {finished.stderr.strip()}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Checks that every test of the proof belongs to a row of the table."""
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
        """Whether only some tests were selected, so that rows without a case are left out and none is too small."""

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
            # Only a test that passed from its setup to its teardown counts.
            for key, number in properties.get("cases", {trial: 1}).items():
                self.cases[key] += number

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        for key, trial in TRIALS.items():
            if not self.is_partial or self.cases[key] or self.faults[key] or key in self.impossible:
                yield trial.promise, trial.tried, f"{self.cases[key]:,}", self.judge(key)

    def judge(self, key: str) -> str:
        if self.faults[key]:
            return "FAILED"
        if key in self.impossible:
            return NOT_POSSIBLE.upper()
        if self.cases[key] < TRIALS[key].least and not self.is_partial:
            return f"FAILED: fewer than {TRIALS[key].least:,} cases"
        return "holds"

    def is_held(self) -> bool:
        return not any(self.judge(key).startswith("FAILED") for key in TRIALS)


_table = _Table()


def pytest_configure(config: pytest.Config) -> None:
    """Notes whether only a part of the proof was asked for."""
    _table.is_partial = config.args != ["tests/proof"] or bool(config.option.keyword)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds the result of each test to the table."""
    _table.add(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run if a promise does not hold, or was not tried often enough."""
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
    verdict = "every promise holds" if _table.is_held() else "NOT every promise holds"
    terminalreporter.write_line(f"{verdict}{' in the part of the proof that ran' if _table.is_partial else ''}")
