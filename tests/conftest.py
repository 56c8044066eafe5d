"""Gives every test an environment without telemetry settings, and the programs that `make` built."""

import os
import shutil
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.checkout import HELM, KUBECTL, OPERATOR_CHECK, PROMTOOL, REPORTER, find_collector, skip_or_fail
from tests.support.processes import end_started

# Hypothesis asserts 200 ms an example unless told otherwise; only benchmarks/ asserts times.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Under nohup, or in the background of a script, these are ignored, and a child would inherit that.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# The proof is run by `make proof`, against the installed wheel; next to the checkout it would prove nothing.
collect_ignore = [] if "OTEL_TBOT_PROOF_WHEELS" in os.environ else ["proof"]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the machine's settings."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "TELEPORT_", "_TBOT_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _ended_commands() -> Iterator[None]:
    """Ends the commands that a test started behind `run`, and closes their pipes."""
    yield
    end_started()


@pytest.fixture(scope="session")
def reporter() -> str:
    """The path of the reporter in Go, which reports as tbot does."""
    if not REPORTER.exists():
        skip_or_fail("the reporter was not built: `make reporter` needs Go")
    return str(REPORTER)


@pytest.fixture(scope="session")
def otelcol() -> str:
    """The path of the OpenTelemetry Collector: OTELCOL, or what `make collector` built."""
    path = find_collector()
    if not path.exists():
        skip_or_fail("the OpenTelemetry Collector was not built: `make collector` needs Go, or set OTELCOL")
    return str(path)


@pytest.fixture(scope="session")
def helm() -> str:
    """The path of Helm, which `make chart` builds."""
    if not HELM.exists():
        skip_or_fail("Helm was not built: `make chart` needs Go")
    return str(HELM)


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool, which `make chart` builds."""
    if not PROMTOOL.exists():
        skip_or_fail("promtool was not built: `make chart` needs Go")
    return str(PROMTOOL)


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The path of kubectl, which `make chart` builds."""
    if not KUBECTL.exists():
        skip_or_fail("kubectl was not built: `make chart` needs Go")
    return str(KUBECTL)


@pytest.fixture(scope="session")
def operator_check() -> str:
    """The path of the check of the Prometheus Operator's objects, which `make chart` builds."""
    if not OPERATOR_CHECK.exists():
        skip_or_fail("check-operator-objects was not built: `make chart` needs Go")
    return str(OPERATOR_CHECK)


@pytest.fixture(scope="session")
def strace() -> str:
    """The path of strace."""
    path = shutil.which("strace")
    if path is None:
        skip_or_fail("strace is not installed")
    return str(path)


# The fixtures that need a program; their tests are not part of `make test-unit`.
_PROGRAM_FIXTURES = frozenset(("generated", "helm", "otelcol", "reporter", "victorialogs"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need a program."""
    for item in items:
        if _PROGRAM_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.programs)
