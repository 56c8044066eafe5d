"""Names what a checkout holds: its root, and the programs that `make` built."""

import os
from pathlib import Path
from typing import Final, NoReturn

import pytest

ROOT: Final = Path(__file__).parent.parent.parent
REPORTER: Final = ROOT / "build" / "reporter"
HELM: Final = ROOT / "build" / "helm"
PROMTOOL: Final = ROOT / "build" / "promtool"
KUBECTL: Final = ROOT / "build" / "kubectl"
OPERATOR_CHECK: Final = ROOT / "build" / "check-operator-objects"

REQUIRED_VARIABLE: Final = "OTEL_TBOT_REQUIRE_COLLECTOR"
"""If it is 1, a program that was not built fails a test instead of skipping it."""

# Read here, because no test sees the variables that the machine has set.
_IS_REQUIRED: Final = os.environ.get(REQUIRED_VARIABLE) == "1"


def find_collector() -> Path:
    """Returns the path of the OpenTelemetry Collector: OTELCOL, or what `make collector` built."""
    return Path(os.environ.get("OTELCOL") or ROOT / "build" / "collector" / "otelcol")


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test with *reason*, or fails it if everything has to run."""
    if _IS_REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)
