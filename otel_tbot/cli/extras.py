"""The extras: the packages that are installed go in, which of those that a command needs are missing comes out."""

import importlib.util
from typing import Final

RELAY_MODULES: Final = ("httptools", "uvicorn", "yaml")
"""What the extra `relay` brings: what the commands need beyond the library."""

RELAY_REMEDY: Final = "pip install 'otel-tbot[relay]'"


def find_missing() -> list[str]:
    """Those of RELAY_MODULES that are not installed; imports none of them."""
    return [name for name in RELAY_MODULES if importlib.util.find_spec(name) is None]
