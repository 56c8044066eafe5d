"""Promise 1: off is off, at every entrance and for every value that is no yes."""

import os
import re
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from otel_tbot import Outcome, TbotLogRecordExporter, TbotSpanExporter, TbotStart, emit
from otel_tbot.bridge.application import Bridge, BridgeError
from otel_tbot.delivery import GroupSender
from otel_tbot.exporters.records import to_log_record, to_resource, to_span
from tests.proof.tracing import Trace, audit, trace
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import OtlpHttpServer

VARIABLE = "TELEPORT_ANONYMOUS_TELEMETRY"
ADDRESS = "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"
DISABLED = "OTEL_SDK_DISABLED"

NO_YES = (
    *("", "0", "f", "F", "false", "False", "FALSE", "no", "off", "n", "2", "-1", "01", "11", "1.0", "yes", "YES", "y"),
    *("on", "ON", "enabled", "tRUE", "TrUe", "tt", " 1", "1 ", "1\n", "\t1", "true ", '"1"', "1;", "1,1", "\u0661"),
    *("\uff11",),
)  # fmt: skip
OFF = {
    "unset": {},
    **{repr(value): {VARIABLE: value} for value in NO_YES},
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
"""Importing the SDK runs its resource detectors, two by default, in threads that end; an idle one may do both."""

# Each entrance: what a person runs, the same as a script, and what does the same without a line of ours, which is the
# whole of what is excepted: the interpreter's own start, the TLS library's, the host's SDK's.
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
ENTRANCES = (*COMMANDS, *SCRIPTS)
EXCEPTED = {
    "run": "pass",
    "emit": "pass",
    "emit()": "pass",
    "doctor": "import ssl",
    "bridge": "import ssl",
    "logs exporter": _SDK,
    "traces exporter": _SDK,
}
# A bridge takes its consent from the reports, so only what is set, and no yes, is off for it.
ROWS = [(entrance, off) for entrance in ENTRANCES for off in OFF if (entrance, off) != ("bridge", "unset")]
HOMELESS = [(entrance, "'0'") for entrance in ENTRANCES]


@pytest.fixture(scope="module")
def refused():
    """An endpoint that is there and is never spoken to; what would be lost in it shows in the trace."""
    with OtlpHttpServer() as server:
        yield server
        assert not server.requests


@pytest.fixture
def environ(refused, tmp_path):
    """What can tempt: an endpoint, exporters, a tbot to ask for its version."""
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


def to_command(entrance):
    """What a person runs."""
    if entrance in COMMANDS:
        return [LAUNCHER[0], *COMMANDS[entrance]]
    return [sys.executable, "-P", "-c", SCRIPTS[entrance]]


def traced(entrance, environ, folder):
    """What the entrance did, up to the command's own start where there is one, and what is excepted of it."""
    done = trace(to_command(entrance), environ, folder)
    key = (EXCEPTED[entrance], "HOME" in environ)
    if key not in _excepted:
        _excepted[key] = trace([sys.executable, "-P", "-c", EXCEPTED[entrance]], environ, folder)
        assert 0 == _excepted[key].finished.returncode
    return (done.before_command("true") if entrance == "run" else done), _excepted[key]


_excepted = {}
_audited = {}


def to_kinds(calls):
    """Calls without descriptors, addresses in memory and results, which differ from run to run."""
    kinds = []
    for call in calls:
        if call.startswith(("clone", "fork", "vfork")):
            kinds.append("thread" if "CLONE_THREAD" in call else "process")
        else:
            # Without descriptors and results, which differ from run to run.
            kinds.append(re.sub(r"\((\d+), ", "(", call).rpartition(" = ")[0])
    return Counter(kinds)


def find_more(entrance, done: Trace, excepted: Trace):
    """What was done beyond what is excepted."""
    threads = Counter({"thread": SDK_THREADS} if EXCEPTED[entrance] == _SDK else {})
    return {
        "sockets": to_kinds(done.network()) - to_kinds(excepted.network()),
        "processes": to_kinds(done.processes()) - threads,
        "files": Counter(done.files()) - Counter(excepted.files()),
    }


NOTHING = {"sockets": Counter(), "processes": Counter(), "files": Counter()}


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize(("entrance", "off"), ROWS, ids=str)
def test_off_makes_no_call_that_the_interpreter_does_not_make_itself(entrance, off, environ, tmp_path):
    """No socket, look-up, thread, child or file by system call; `run` and emit read no OpenTelemetry."""
    done, excepted = traced(entrance, environ | OFF[off], tmp_path)

    assert NOTHING == find_more(entrance, done, excepted)
    assert (2 if entrance == "bridge" else 0) == done.finished.returncode, done.finished.stderr
    if entrance in ("run", "emit", "emit()"):
        assert [] == done.opened("opentelemetry")
    if entrance in ("run", "emit()"):
        assert ("" if entrance == "run" else "off\n", "") == (done.finished.stdout, done.finished.stderr)


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize(("entrance", "off"), HOMELESS)
def test_off_without_a_home_makes_no_more_calls(entrance, off, environ, tmp_path):
    """Where HOME is unset the interpreter asks the name service for one, by itself; nothing is added to that."""
    del environ["HOME"]
    done, excepted = traced(entrance, environ | OFF[off], tmp_path)

    assert NOTHING == find_more(entrance, done, excepted)


@pytest.fixture
def turned_on(environ):
    """The same with a yes, before a collector that accepts."""
    with OtlpHttpServer() as server:
        more = {VARIABLE: "1", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        yield {**environ, **more}


@pytest.mark.promise("off.calls")
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_on_the_same_trace_shows_what_off_does_not_do(entrance, turned_on, refused, tmp_path):
    """With a yes each entrance opens a socket, so a trace that shows none is worth something."""
    command = to_command(entrance)
    if entrance == "bridge":
        # On a port that is taken, so that it ends.
        command[-1] = refused.url.removeprefix("http://")
    done = trace(command, turned_on, tmp_path)

    assert done.network()
    # The relay ends with its command, which may be before it has come to that, and a bridge listens first.
    assert entrance in ("run", "bridge") or done.opened("opentelemetry")


def audited(entrance, environ):
    """The audit events of the entrance's script, and of what is excepted."""
    if entrance in COMMANDS:
        done = audit(f"{_MAIN}try: main()\nexcept SystemExit: pass\n", environ, *COMMANDS[entrance])
    else:
        done = audit(SCRIPTS[entrance], environ)
    if EXCEPTED[entrance] not in _audited:
        _audited[EXCEPTED[entrance]] = audit(EXCEPTED[entrance], environ)
    return done, _audited[EXCEPTED[entrance]]


@pytest.mark.promise("off.audit")
@pytest.mark.parametrize(("entrance", "off"), ROWS, ids=str)
def test_off_raises_no_audit_event_that_the_interpreter_does_not_raise_itself(entrance, off, environ):
    """No socket, look-up, child or file by audit hook; nothing of OpenTelemetry is loaded for `run` and emit."""
    done, excepted = audited(entrance, environ | OFF[off])

    assert Counter() == Counter(done.seen) - Counter(excepted.seen)
    assert Counter() == Counter(done.files()) - Counter(excepted.files())
    if entrance in ("run", "emit", "emit()"):
        assert [] == [*done.loaded("opentelemetry"), *done.loaded("socket")]


@pytest.mark.promise("off.audit")
@pytest.mark.parametrize("entrance", [entrance for entrance in ENTRANCES if entrance != "bridge"])
def test_on_the_same_hook_hears_what_off_does_not_do(entrance, turned_on):
    """With a yes each entrance makes a socket, and the hook hears it."""
    done, _ = audited(entrance, turned_on)

    assert "socket.__new__" in done.seen


EXCEPTIONS = {
    "the interpreter": ("pass", {}),
    "the interpreter without HOME": ("pass", {"HOME": None}),
    "the TLS library": ("import ssl", {}),
    "the SDK": (_SDK, {}),
}
# A look-up in the host's own tables and name service: over a socket of this machine alone.
_NAME_SERVICE = re.compile(
    r"(socket\(AF_UNIX|connect\(\{sa_family=AF_UNIX|(sendto|sendmsg|recvfrom|recvmsg|shutdown)\()"
)
_LOCALE_FILES = re.compile(r"openat (/usr/share/locale/locale\.alias|/etc/localtime)")
_NAME_FILES = re.compile(r"openat /etc/(nsswitch\.conf|passwd|group|default/nss)")
_IPV6_PROBE = re.compile(r'socket\(AF_INET6|bind\(\{sa_family=AF_INET6, sin6_port=htons\(0\).*"::1"')
_TLS_FILES = re.compile(r"openat .*/openssl\.cnf")


@pytest.mark.promise("off.exceptions")
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_what_is_excepted_is_no_more_than_is_listed(name, environ, tmp_path):
    """The exceptions are a name look-up on this machine where HOME is unset, openssl.cnf, and threads of the SDK."""
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
def test_off_a_pipeline_has_no_more_threads_than_the_sdk_s_own_exporter_has(signal, environ, tmp_path):
    """`OTEL_LOGS_EXPORTER=tbot`, off: the SDK's batch thread as around its console exporter, and no connection.

    Instrumented, urllib3 asks whether there is IPv6, by a socket that is bound to ::1 and connects to nothing.
    """
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    environ |= {"OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    command = [instrument, sys.executable, "-P", "-c", "pass"]
    threads = {}
    for exporter in ("console", "tbot"):
        done = trace(command, environ | {f"OTEL_{signal}_EXPORTER": exporter}, tmp_path)
        assert 0 == done.finished.returncode, done.finished.stderr
        assert [] == [call for call in to_kinds(done.network()) if not _IPV6_PROBE.match(call)]
        threads[exporter] = to_kinds(done.processes())["thread"]

    # The detectors' threads, see SDK_THREADS, may be one or two of them.
    assert 0 < threads["tbot"] <= threads["console"] + SDK_THREADS - 1


YES_THEN_NO = [{VARIABLE: "0"}, {VARIABLE: ""}, {DISABLED: "true"}]


def a_record(signal):
    """A finished `tbot.start` of *signal*."""
    to_otel = to_log_record if signal == "log" else to_span
    return to_otel(TbotStart(run_mode="daemon"), time_ns=0, resource=to_resource(is_local=True))


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("later", YES_THEN_NO, ids=str)
@pytest.mark.parametrize("signal", ["log", "span"])
def test_turned_off_after_the_start_an_exporter_sends_no_more(signal, later, monkeypatch):
    """What was built on sends until it is turned off, and no record after that."""
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
@pytest.mark.parametrize("later", YES_THEN_NO, ids=str)
def test_turned_off_after_the_start_emit_sends_no_more(later, monkeypatch):
    """A call after the variable was changed is off."""
    with OtlpHttpServer() as server:
        monkeypatch.setenv(VARIABLE, "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        assert Outcome.ACCEPTED is emit(TbotStart(run_mode="daemon"), deadline_seconds=60)
        for name, value in later.items():
            monkeypatch.setenv(name, value)

        assert Outcome.OFF is emit(TbotStart(run_mode="daemon"), deadline_seconds=60)
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("later", YES_THEN_NO, ids=str)
def test_turned_off_after_the_start_a_bridge_sends_no_more(later):
    """Reports that come later do not leave; their consent is taken back by the bridge's own environment."""
    with OtlpHttpServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        sender = GroupSender(environ)
        assert Outcome.ACCEPTED is sender.send([(TbotStart(run_mode="daemon"), 0)], deadline_seconds=60)
        environ |= later

        assert Outcome.OFF is sender.send([(TbotStart(run_mode="daemon"), 0)], deadline_seconds=60)
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_turned_on_after_the_start_an_exporter_that_was_built_off_stays_off(signal, monkeypatch):
    """Nothing that was built off begins: no thread, no connection."""
    exporter_class = TbotLogRecordExporter if signal == "log" else TbotSpanExporter
    with OtlpHttpServer() as server:
        monkeypatch.setenv(VARIABLE, "0")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        exporter = exporter_class()
        monkeypatch.setenv(VARIABLE, "1")
        threads = threading.active_count()
        exporter.export([a_record(signal)])
        exporter.shutdown()

        assert threads == threading.active_count()
        assert not server.requests
        later = exporter_class()
        later.export([a_record(signal)])
        later.shutdown()
        assert 1 == len(server.requests)


@pytest.mark.promise("off.later")
def test_turned_on_after_the_start_a_bridge_that_refused_stays_refused():
    """A bridge that must not start does not: nothing of it is built that could begin later."""
    bridge = Bridge({VARIABLE: "0", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    threads = threading.active_count()

    with pytest.raises(BridgeError):
        bridge.start()
    assert threads == threading.active_count()
    assert 0 == bridge.waiting


NOWHERE = {
    "no descriptor": ({}, "socket:error=EMFILE"),
    "no port": ({}, "bind:error=EADDRINUSE"),
    "no listening": ({}, "listen:error=EACCES"),
    "no process": ({}, "clone,clone3,fork,vfork:error=EAGAIN"),
    "no memory for a process": ({}, "clone,clone3,fork,vfork:error=ENOMEM"),
    "no session": ({}, "setsid:error=EPERM"),
    "the SDK disabled": ({DISABLED: "true"}, ""),
    "an endpoint that is none": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere at all"}, ""),
    "an endpoint of another scheme": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://198.51.100.7/"}, ""),
    "an endpoint without a port": ({"OTEL_EXPORTER_OTLP_ENDPOINT": "198.51.100.7"}, ""),
}


@pytest.mark.promise("off.nowhere")
@pytest.mark.parametrize("name", NOWHERE)
def test_where_no_relay_can_be_had_the_report_reaches_nobody(name, reporter, tmp_path):
    """tbot connects to 127.0.0.1 alone, where nothing answers, and ends as it would."""
    more, fault = NOWHERE[name]
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
    # A fault can hit tbot's own socket as well, so that it connects to nothing.
    assert connected <= {'inet_addr("127.0.0.1")'}


@pytest.mark.promise("off.nowhere")
def test_without_the_extra_the_report_reaches_nobody(reporter, tmp_path):
    """Where the relay's requirements are missing, the report goes nowhere, too."""
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]\n"
        "from otel_tbot.__main__ import main\nmain()"
    )
    package = Path(sys.modules["otel_tbot"].__file__).parent
    (tmp_path / "otel_tbot").symlink_to(package)
    launch = Launch({"PATH": os.environ["PATH"], "HOME": "/nonexistent", **CONSENT})
    launcher = (sys.executable, "-P", "-c", script, str(tmp_path), "run", "--")
    finished = launch.run([reporter, "-oneshot", "-exit-code", "7"], launcher=launcher)

    assert 7 == finished.returncode
    assert finished.stdout.startswith("error unavailable ")
    assert "it needs the extra `relay`" in finished.stderr
    assert not launch.relays()


@pytest.mark.promise("off.nowhere")
def test_where_a_relay_is_had_the_report_reaches_the_collector(reporter):
    """The same command with nothing in its way is accepted, so the others fail by their fault."""
    with OtlpHttpServer() as server:
        environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        launch = Launch({**environ, **CONSENT, "OTEL_TBOT_TIMEOUT": "60000"})
        finished = launch.run([reporter, "-oneshot", "-exit-code", "7"])
        launch.wait_for_end()

        assert 7 == finished.returncode
        assert finished.stdout.startswith("ok ")
        assert 1 == len(server.requests)
