"""Waits for a condition: the only place in the tests that lets time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def poll_until(condition: Callable[[], Value], *, waiting_for: str, deadline_seconds: float = 60.0) -> Value:
    """Returns the first true value of *condition*; fails with what it waited for and the last value."""
    deadline = time.monotonic() + deadline_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {deadline_seconds:g} s for {waiting_for}; last saw {value!r}")
        time.sleep(0.01)
    return value
