"""Proves promise 1: off is off, at every entry point and for every value that does not mean on."""

import os
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from otel_tbot import Outcome, TbotLogRecordExporter, TbotSpanExporter, TbotStart, emit
from otel_tbot.bridge.application import Bridge, BridgeError
from otel_tbot.consent import FROM_REPORT
from otel_tbot.delivery import EventSender
from otel_tbot.exporters.records import to_log_record, to_resource, to_span
from tests.proof.tracing import Trace, audit, trace
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import OtlpHttpServer

VARIABLE = "TELEPORT_ANONYMOUS_TELEMETRY"
ADDRESS = "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"
DISABLED = "OTEL_SDK_DISABLED"

OFF_VALUES = (
    *("", "0", "f", "F", "false", "False", "FALSE", "no", "off", "n", "2", "-1", "01", "11", "1.0", "yes", "YES", "y"),
    *("on", "ON", "enabled", "tRUE", "TrUe", "tt", " 1", "1 ", "1\n", "\t1", "true ", '"1"', "1;", "1,1", "\u0661"),
    *("\uff11",),
)  # fmt: skip
OFF = {
    "unset": {},
    **{repr(value): {VARIABLE: value} for value in OFF_VALUES},
    **{f"disabled {value!r}": {VARIABLE: "1", DISABLED: value} for value in ("true", "TRUE", " True ")},
}
ON = {VARIABLE: "1"}

_MAIN = "import sys; sys.argv = ['otel-tbot', *sys.argv[1:]]; from otel_tbot.__main__ import main\n"
_EXPORTER = (
    "from otel_tbot import TbotStart, {name} as Exporter\n"
    "from otel_tbot.exporters.records import {to_otel} as to_otel, to_resource\n"
    "exporter = Exporter()\n"
    "record = to_otel(TbotStart(run_mode='daemon'), time_ns=0, resource=to_resource(is_local=True))\n"
    "exporter.export([record]); exporter.force_flush(); exporter.shutdown()\n"
)
_SDK = "import ssl, uuid, opentelemetry.sdk.trace.export, opentelemetry.sdk._logs.export\n"
SDK_THREADS = 2
"""Importing the SDK runs its resource detectors, two by default, in threads that end; one thread may run both."""

# Each entry point is a command that a person runs, or a script. For each, EXCEPTED holds a script without our code, and
# only its calls are allowed. They belong to the start of the interpreter, to the TLS library, or to the host's SDK.
COMMANDS = {
    "run": ("run", "--", "true"),
    "emit": ("emit", "--oneshot", "--tbot-version", "18.4.1"),
    "doctor": ("doctor",),
    "bridge": ("bridge", "--listen", "127.0.0.1:0"),
}
SCRIPTS = {
    "emit()": "import otel_tbot\nprint(otel_tbot.emit(otel_tbot.TbotStart(run_mode='daemon')).value)\n",
    "logs exporter": _EXPORTER.format(name="TbotLogRecordExporter", to_otel="to_log_record"),
    "traces exporter": _EXPORTER.format(name="TbotSpanExporter", to_otel="to_span"),
}
ENTRY_POINTS = (*COMMANDS, *SCRIPTS)
EXCEPTED = {
    "run": "pass",
    "emit": "pass",
    "emit()": "pass",
    "doctor": "import ssl",
    "bridge": "import ssl",
    "logs exporter": _SDK,
    "traces exporter": _SDK,
}
# A bridge takes its consent from the reports, so it is off only if the variable has a value that does not mean on.
ROWS = [(entry_point, off) for entry_point in ENTRY_POINTS for off in OFF if (entry_point, off) != ("bridge", "unset")]
HOMELESS = [(entry_point, "'0'") for entry_point in ENTRY_POINTS]


@pytest.fixture(scope="module")
def refused():
    """An endpoint that accepts everything, and must not get a request."""
    with OtlpHttpServer() as server:
        yield server
        assert not server.requests


@pytest.fixture
def environ(refused, tmp_path):
    """An environment with much to act on: an endpoint, exporters, and a tbot that reports its version."""
    tbot = tmp_path / "bin" / "tbot"
    tbot.parent.mkdir()
    tbot.write_text("#!/bin/sh\necho v18.4.1\n")
    tbot.chmod(0o755)
    return {
        "PATH": f"{tbot.parent}:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "OTEL_EXPORTER_OTLP_ENDPOINT": refused.url,
        "OTEL_LOGS_EXPORTER": "tbot",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_TBOT_TIMEOUT": "60000",
    }


def to_command(entry_point):
    """Returns the command of *entry_point*."""
    if entry_point in COMMANDS:
        return [LAUNCHER[0], *COMMANDS[entry_point]]
    return [sys.executable, "-P", "-c", SCRIPTS[entry_point]]


def traced(entry_point, environ, folder):
    """Returns the trace of *entry_point*, up to the start of the command behind `run`, and that of its exceptions."""
    done = trace(to_command(entry_point), environ, folder)
    key = (EXCEPTED[entry_point], "HOME" in environ)
    if key not in _excepted:
        _excepted[key] = trace([sys.executable, "-P", "-c", EXCEPTED[entry_point]], environ, folder)
        assert 0 == _excepted[key].finished.returncode
    return (done.before_command("true") if entry_point == "run" else done), _excepted[key]


_excepted = {}
_audited = {}


def to_kinds(calls):
    """Counts *calls* without descriptors, addresses in memory and results, which differ from run to run."""
    kinds = []
    for call in calls:
        if call.startswith(("clone", "fork", "vfork")):
            kinds.append("thread" if "CLONE_THREAD" in call else "process")
        else:
            kinds.append(re.sub(r"\((\d+), ", "(", call).rpartition(" = ")[0])
    return Counter(kinds)


def find_more(entry_point, done: Trace, excepted: Trace):
    """Returns the calls of *done* that are not among the exceptions."""
    threads = Counter({"thread": SDK_THREADS} if EXCEPTED[entry_point] == _SDK else {})
    return {
        "sockets": to_kinds(done.network()) - to_kinds(excepted.network()),
        "processes": to_kinds(done.processes()) - threads,
        "files": Counter(done.files()) - Counter(excepted.files()),
    }


NOTHING = {"sockets": Counter(), "processes": Counter(), "files": Counter()}


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize(("entry_point", "off"), ROWS, ids=str)
def test_off_makes_no_call_that_the_interpreter_does_not_make_itself(entry_point, off, environ, tmp_path):
    """No system call makes a socket, look-up, thread, child or file; `run` and emit do not read OpenTelemetry."""
    done, excepted = traced(entry_point, environ | OFF[off], tmp_path)

    assert NOTHING == find_more(entry_point, done, excepted)
    assert (2 if entry_point == "bridge" else 0) == done.finished.returncode, done.finished.stderr
    if entry_point in ("run", "emit", "emit()"):
        assert [] == done.opened("opentelemetry")
    if entry_point in ("run", "emit()"):
        assert ("" if entry_point == "run" else "off\n", "") == (done.finished.stdout, done.finished.stderr)


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize(("entry_point", "off"), HOMELESS)
def test_off_without_a_home_makes_no_more_calls(entry_point, off, environ, tmp_path):
    """If HOME is unset, the interpreter itself asks the name service for it; nothing is added to that."""
    del environ["HOME"]
    done, excepted = traced(entry_point, environ | OFF[off], tmp_path)

    assert NOTHING == find_more(entry_point, done, excepted)


@pytest.fixture
def turned_on(environ):
    """The same environment with telemetry on, and a collector that accepts."""
    with OtlpHttpServer() as server:
        more = {VARIABLE: "1", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        yield {**environ, **more}


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_the_same_trace_shows_a_socket_if_telemetry_is_on(entry_point, turned_on, refused, tmp_path):
    """If telemetry is on, each entry point opens a socket, so a trace without a socket proves something."""
    command = to_command(entry_point)
    if entry_point == "bridge":
        # The port is taken, so that the bridge ends.
        command[-1] = refused.url.removeprefix("http://")
    done = trace(command, turned_on, tmp_path)

    assert done.network()
    # The relay ends with its command, possibly before it imports OpenTelemetry, and the bridge fails to listen first.
    assert entry_point in ("run", "bridge") or done.opened("opentelemetry")


def audited(entry_point, environ):
    """Returns the audit events of *entry_point*, and those of its exceptions."""
    if entry_point in COMMANDS:
        done = audit(f"{_MAIN}try: main()\nexcept SystemExit: pass\n", environ, *COMMANDS[entry_point])
    else:
        done = audit(SCRIPTS[entry_point], environ)
    if EXCEPTED[entry_point] not in _audited:
        _audited[EXCEPTED[entry_point]] = audit(EXCEPTED[entry_point], environ)
    return done, _audited[EXCEPTED[entry_point]]


@pytest.mark.promise("off.audit")
@pytest.mark.parametrize(("entry_point", "off"), ROWS, ids=str)
def test_off_raises_no_audit_event_that_the_interpreter_does_not_raise_itself(entry_point, off, environ):
    """The audit hook sees no socket, look-up, child or file; `run` and emit load nothing of OpenTelemetry."""
    done, excepted = audited(entry_point, environ | OFF[off])

    assert Counter() == Counter(done.seen) - Counter(excepted.seen)
    assert Counter() == Counter(done.files()) - Counter(excepted.files())
    if entry_point in ("run", "emit", "emit()"):
        assert [] == [*done.loaded("opentelemetry"), *done.loaded("socket")]


@pytest.mark.promise("off.audit")
@pytest.mark.parametrize("entry_point", [entry_point for entry_point in ENTRY_POINTS if entry_point != "bridge"])
def test_the_same_hook_sees_a_socket_if_telemetry_is_on(entry_point, turned_on):
    """If telemetry is on, each entry point makes a socket, and the hook sees it."""
    done, _ = audited(entry_point, turned_on)

    assert "socket.__new__" in done.seen


EXCEPTIONS = {
    "the interpreter": ("pass", {}),
    "the interpreter without HOME": ("pass", {"HOME": None}),
    "the TLS library": ("import ssl", {}),
    "the SDK": (_SDK, {}),
}
# A look-up in the host's own tables and its name service, over a socket that does not leave this machine.
_NAME_SERVICE = re.compile(
    r"(socket\(AF_UNIX|connect\(\{sa_family=AF_UNIX|(sendto|sendmsg|recvfrom|recvmsg|shutdown)\()"
)
_LOCALE_FILES = re.compile(r"openat (/usr/share/locale/locale\.alias|/etc/localtime)")
_NAME_FILES = re.compile(r"openat /etc/(nsswitch\.conf|passwd|group|default/nss)")
_IPV6_PROBE = re.compile(r'socket\(AF_INET6|bind\(\{sa_family=AF_INET6, sin6_port=htons\(0\).*"::1"')
_TLS_FILES = re.compile(r"openat .*/openssl\.cnf")


@pytest.mark.promise("off.exceptions")
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_the_exceptions_are_only_those_listed(name, environ, tmp_path):
    """They are a name look-up on this machine if HOME is unset, openssl.cnf, and threads of the SDK."""
    script, changes = EXCEPTIONS[name]
    environ = {key: value for key, value in (environ | changes).items() if value is not None}
    done = trace([sys.executable, "-P", "-c", script], environ, tmp_path)
    is_homeless, is_tls, is_sdk = "HOME" not in environ, "ssl" in script, script == _SDK

    files = [file for file in done.files() if not _LOCALE_FILES.fullmatch(file)]
    assert [] == [file for file in files if not ((is_homeless and _NAME_FILES.fullmatch(file)) or is_tls)]
    assert [] == [file for file in files if is_tls and not _TLS_FILES.fullmatch(file)]
    sockets = [call for call in to_kinds(done.network()) if not (is_homeless and _NAME_SERVICE.match(call))]
    assert [] == sockets
    assert Counter() == to_kinds(done.processes()) - Counter({"thread": SDK_THREADS if is_sdk else 0})


@pytest.mark.promise("off.exceptions")
@pytest.mark.parametrize("signal", ["LOGS", "TRACES"])
def test_a_pipeline_that_is_off_has_no_more_threads_than_one_with_the_console_exporter(signal, environ, tmp_path):
    """`OTEL_LOGS_EXPORTER=tbot`, off: the same batch thread of the SDK as for its console exporter, no connection.

    When urllib3 is imported for instrumentation, it tries whether there is IPv6 with a socket that is bound to ::1 and
    not connected.
    """
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    environ |= {"OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    script = "import threading; print(sorted(thread.name for thread in threading.enumerate()))"
    command = [instrument, sys.executable, "-P", "-c", script]
    threads, stay = {}, {}
    for exporter in ("console", "tbot"):
        done = trace(command, environ | {f"OTEL_{signal}_EXPORTER": exporter}, tmp_path)
        assert 0 == done.finished.returncode, done.finished.stderr
        assert [] == [call for call in to_kinds(done.network()) if not _IPV6_PROBE.match(call)]
        threads[exporter] = to_kinds(done.processes())["thread"]
        stay[exporter] = done.finished.stdout

    assert stay["console"] == stay["tbot"]
    # The detectors run twice, at the import and at the configuration, each time in one or two threads; see SDK_THREADS.
    assert 0 < threads["tbot"] <= threads["console"] + 2 * (SDK_THREADS - 1)


OFF_LATER = [{VARIABLE: "0"}, {VARIABLE: ""}, {DISABLED: "true"}]


def a_record(signal):
    """Returns a finished `tbot.start` of *signal*."""
    to_otel = to_log_record if signal == "log" else to_span
    return to_otel(TbotStart(run_mode="daemon"), time_ns=0, resource=to_resource(is_local=True))


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("later", OFF_LATER, ids=str)
@pytest.mark.parametrize("signal", ["log", "span"])
def test_turned_off_after_the_start_an_exporter_sends_no_more(signal, later, monkeypatch):
    """An exporter that was built with telemetry on sends until it is turned off, and no record after that."""
    exporter_class = TbotLogRecordExporter if signal == "log" else TbotSpanExporter
    with OtlpHttpServer() as server:
        monkeypatch.setenv(VARIABLE, "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        exporter = exporter_class()
        exporter.export([a_record(signal)])
        for name, value in later.items():
            monkeypatch.setenv(name, value)
        exporter.export([a_record(signal)])
        exporter.shutdown()

        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("later", OFF_LATER, ids=str)
def test_turned_off_after_the_start_emit_sends_no_more(later, monkeypatch):
    """A call after the variable was changed returns OFF."""
    with OtlpHttpServer() as server:
        monkeypatch.setenv(VARIABLE, "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        assert Outcome.ACCEPTED is emit(TbotStart(run_mode="daemon"), deadline_seconds=60)
        for name, value in later.items():
            monkeypatch.setenv(name, value)

        assert Outcome.OFF is emit(TbotStart(run_mode="daemon"), deadline_seconds=60)
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("later", OFF_LATER, ids=str)
def test_turned_off_after_the_start_a_bridge_sends_no_more(later):
    """Reports that come later are not sent: the bridge's own environment withholds their consent."""
    batch = [(TbotStart(run_mode="daemon"), 0)]
    with OtlpHttpServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        sender = EventSender(environ, origin=FROM_REPORT, is_local=False)
        assert Outcome.ACCEPTED is sender.send(batch, deadline=time.monotonic() + 60)
        environ |= later

        assert Outcome.OFF is sender.send(batch, deadline=time.monotonic() + 60)
        sender.close()
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_turned_on_after_the_start_an_exporter_that_was_built_off_stays_off(signal, monkeypatch):
    """An exporter that was built with telemetry off starts no thread and no connection later."""
    exporter_class = TbotLogRecordExporter if signal == "log" else TbotSpanExporter
    with OtlpHttpServer() as server:
        monkeypatch.setenv(VARIABLE, "0")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        exporter = exporter_class()
        monkeypatch.setenv(VARIABLE, "1")
        # Threads of earlier tests may end meanwhile.
        before = set(threading.enumerate())
        exporter.export([a_record(signal)])
        exporter.shutdown()

        assert set() == set(threading.enumerate()) - before
        assert not server.requests
        later = exporter_class()
        later.export([a_record(signal)])
        later.shutdown()
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
def test_turned_on_after_the_start_a_bridge_that_must_not_start_stays_off():
    """A bridge that must not start builds nothing that could start later."""
    bridge = Bridge({VARIABLE: "0", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    before = set(threading.enumerate())

    with pytest.raises(BridgeError):
        bridge.start()
    assert set() == set(threading.enumerate()) - before
    assert 0 == bridge.waiting


NO_RELAY = {
    "no descriptor": ({}, "socket:error=EMFILE"),
    "no free port": ({}, "bind:error=EADDRINUSE"),
    "no listening": ({}, "listen:error=EACCES"),
    "no process": ({}, "clone,clone3,fork,vfork:error=EAGAIN"),
    "no memory for a process": ({}, "clone,clone3,fork,vfork:error=ENOMEM"),
    "no session": ({}, "setsid:error=EPERM"),
    "the SDK disabled": ({DISABLED: "true"}, ""),
    "an invalid endpoint": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "not an endpoint"}, ""),
    "an endpoint of another scheme": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://198.51.100.7/"}, ""),
    "an endpoint without a port": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "198.51.100.7"}, ""),
}


@pytest.mark.promise("off.no-relay")
@pytest.mark.parametrize("name", NO_RELAY)
def test_without_a_relay_the_report_is_not_sent_anywhere(name, reporter, tmp_path):
    """tbot connects only to 127.0.0.1, where nothing answers, and ends with its own status."""
    more, fault = NO_RELAY[name]
    launch = Launch({"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **CONSENT, **more})
    written = tmp_path / "calls"
    strace = ["strace", "-f", "-qqq", "-e", "trace=%network,setsid,clone,clone3,fork,vfork", "-o", str(written)]
    if fault:
        strace += ["-e", f"inject={fault}:when=1"]
    finished = launch.run([reporter, "-oneshot", "-exit-code", "7"], launcher=(*strace, *LAUNCHER))
    launch.wait_for_end()
    calls = written.read_text().splitlines()
    connected = {
        found.group(1) for call in calls if (found := re.search(r"sin6?_addr=(.*?)\}", call)) and "connect(" in call
    }

    assert 7 == finished.returncode
    assert finished.stdout.startswith("error unavailable ")
    # The injected error can hit tbot's own socket too, so that it connects to nothing.
    assert connected <= {'inet_addr("127.0.0.1")'}


@pytest.mark.promise("off.no-relay")
def test_without_its_requirements_the_relay_says_what_is_missing(reporter, tmp_path):
    """If a package that the relay imports is not installed, the report is not sent, and tbot's log names the module."""
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]\n"
        "from otel_tbot.__main__ import main\nmain()"
    )
    package = Path(sys.modules["otel_tbot"].__file__).parent
    (tmp_path / "otel_tbot").symlink_to(package)
    with OtlpHttpServer() as server:
        environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        launch = Launch({**environ, **CONSENT, "OTEL_TBOT_TIMEOUT": "60000"})
        launcher = (sys.executable, "-P", "-c", script, str(tmp_path), "run", "--")
        finished = launch.run([reporter, "-oneshot", "-exit-code", "7"], launcher=launcher)
        launch.wait_for_end()

        assert (7, "") == (finished.returncode, finished.stderr)
        assert finished.stdout.startswith("error unavailable ")
        assert "the relay cannot load what it needs: ModuleNotFoundError in " in finished.stdout
        assert not server.requests


@pytest.mark.promise("off.no-relay")
def test_with_a_relay_the_report_reaches_the_collector(reporter):
    """Without an injected error the same report is accepted, so the errors made the others fail."""
    with OtlpHttpServer() as server:
        environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        launch = Launch({**environ, **CONSENT, "OTEL_TBOT_TIMEOUT": "60000"})
        finished = launch.run([reporter, "-oneshot", "-exit-code", "7"])
        launch.wait_for_end()

        assert 7 == finished.returncode
        assert finished.stdout.startswith("ok ")
        assert 1 == len(server.requests)
