import subprocess
import sys
import threading

from otel_tbot.deadline import run_within


def test_work_that_is_done_in_time_is_returned():
    """What the work returned comes back, and its thread is gone."""
    assert "done" == run_within(60, lambda: "done")
    assert not [thread for thread in threading.enumerate() if thread.name == "otel-tbot"]


def test_work_that_takes_longer_is_left_behind():
    """None comes back while the work still waits, in a thread that does not keep the process from ending."""
    gate = threading.Event()

    assert run_within(0.01, lambda: gate.wait(60)) is None
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "otel-tbot"]
    assert thread.daemon
    gate.set()
    thread.join()


def test_where_there_is_no_thread_the_work_is_done_all_the_same():
    """At the interpreter's end, or at a limit: late is better than lost."""
    script = """
import resource, threading
from otel_tbot.deadline import run_within
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
print(run_within(60, lambda: threading.current_thread() is threading.main_thread()))
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)

    assert ("True\n", "") == (finished.stdout, finished.stderr)
