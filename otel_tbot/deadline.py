"""A deadline that holds: work goes in, what it returned in time comes out, whatever it waits for."""

import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def run_within(deadline_seconds: float, work: Callable[[], Value]) -> Value | None:
    """What *work* returns, or None where it takes longer than *deadline_seconds*; it is then left behind.

    *work* must not raise. Nothing in requests, grpc or the resolver keeps a deadline against a peer that will not have
    it, and a daemon thread is what can be left behind. At the interpreter's end, where there are no new threads (since
    Python 3.12), the work is done in this one: late is better than lost.
    """
    results: list[Value] = []

    def run() -> None:
        results.append(work())

    worker = threading.Thread(target=run, name="otel-tbot", daemon=True)
    try:
        worker.start()
    except RuntimeError:
        return work()
    worker.join(max(deadline_seconds, 0))
    return results[0] if results else None
