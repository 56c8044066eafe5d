import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from otel_tbot.launcher import MIN_DESCRIPTORS
from tests.support.checkout import skip_or_fail
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, LAUNCHER, Launch

ADDRESS = "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"
UNREACHABLE_ADDRESS = "http://127.0.0.1:0"
OFF_VALUES = (None, "", "0", " 1", "yes")

BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
FULL = {
    **BASIC,
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TERM": "xterm",
    "EMPTY": "",
    "UMLAUT": "grün",
    "MANY": "x" * 30_000,
    "OTEL_RESOURCE_ATTRIBUTES": "host.name=canary",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "PYTHONWARNINGS": "ignore",
}
ENVIRONMENTS = {
    "empty": {},
    "full": FULL,
    "C locale": {**BASIC, "LC_CTYPE": "C", "AFTER": "1"},
    "all C": {**BASIC, "LC_ALL": "C"},
    "C locale in another language": {**BASIC, "LANG": "de_DE.UTF-8", "LC_CTYPE": "C"},
    "chosen UTF-8": {**BASIC, "LC_CTYPE": "C.UTF-8"},
    "UTF-8 mode": {**BASIC, "PYTHONUTF8": "1"},
}
PROBES = {
    "environment": ("env",),
    "status": (
        "grep",
        "-E",
        "^(Umask|Uid|Gid|Groups|Threads|Sig[PBIC]|Shd|Cap|NoNew|Seccomp|Cpus_allowed|Mems_allowed_list)",
        "/proc/self/status",
    ),
    "descriptors": ("ls", "/proc/self/fd"),
    "directory": ("readlink", "/proc/self/cwd"),
    "arguments": ("cat", "/proc/self/cmdline", "/dev/null"),
    "limits": ("cat", "/proc/self/limits"),
    "memory killer": ("cat", "/proc/self/oom_score_adj"),
    # State, parent, group, session and terminal; priority and niceness.
    "session and priority": ("cut", "-d", " ", "-f", "3-7,18,19", "/proc/self/stat"),
}


def without_address(text: str) -> str:
    """Returns *text* without the address of a relay, the only thing that may differ."""
    return re.sub(rf"{ADDRESS}=http://127\.0\.0\.1:[0-9]+/[0-9a-f]{{32}}\n", "", text)


@pytest.mark.parametrize("consent", [None, "1"], ids=["off", "on"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("probe", PROBES)
def test_run_changes_nothing_of_the_process(probe, environment, consent, tmp_path):
    """Behind `run`, the command has the same process state as without it, in every environment."""
    environ = ENVIRONMENTS[environment] | ({} if consent is None else CONSENT)
    launch = Launch(environ, is_measured=False)
    reader, writer = os.pipe()
    options = {"cwd": tmp_path, "pass_fds": (reader, writer)}
    command = [shutil.which(PROBES[probe][0]), *PROBES[probe][1:]]

    direct = launch.run(command, launcher=(), **options)
    behind = launch.run(command, **options)
    launch.wait_for_end()
    os.close(reader)
    os.close(writer)

    assert (direct.returncode, direct.stdout, direct.stderr) == (
        behind.returncode,
        without_address(behind.stdout),
        behind.stderr,
    )
    assert direct.stdout
    assert ((probe, consent) == ("environment", "1")) == (ADDRESS in behind.stdout)


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_run_undoes_what_python_did_to_the_locale(environment, consent):
    """The command gets the caller's LC_CTYPE, never the one that Python sets."""
    launch = Launch(ENVIRONMENTS[environment] | consent)

    direct = launch.run(["/usr/bin/env"], launcher=())
    behind = launch.run(["/usr/bin/env"])
    launch.wait_for_end()

    assert direct.stdout == without_address(behind.stdout)
    assert "LC_CTYPE" in ENVIRONMENTS[environment] or "LC_CTYPE" not in behind.stdout


# Executes its arguments like a caller that has set all of this. The signals that Python ignores have their default.
PREPARED = (
    sys.executable,
    "-c",
    """
import os, resource, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD])
os.umask(0o027)
os.nice(3)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
os.execvp(sys.argv[1], sys.argv[1:])
""",
)


def test_run_keeps_what_the_caller_set_for_the_process():
    """Ignored and blocked signals, umask, priority and limits of the caller reach the command, relay or not."""
    for consent in ({}, CONSENT):
        launch = Launch(BASIC | consent, is_measured=False)
        for probe in ("status", "limits", "session and priority"):
            direct = launch.run(PROBES[probe], launcher=PREPARED)
            behind = launch.run(PROBES[probe], launcher=(*PREPARED, *LAUNCHER))

            assert direct.stdout == behind.stdout
            assert "" == behind.stderr
        launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
def test_run_keeps_the_process_id_and_the_bytes_of_the_arguments(consent):
    """The command has the process id that the launcher had, and its arguments byte for byte."""
    launch = Launch(BASIC | consent, is_measured=False)
    script = 'printf "%s\\n" "$$" "$0" "$@"'
    arguments = [b"sh", b"-c", script.encode(), b"name", b"--", b"", b"a b", b"\xff\xfe", "ü".encode()]

    process = launch.start(arguments, text=False)
    out, _ = process.communicate()
    launch.wait_for_end()

    assert [str(process.pid).encode(), *arguments[3:], b""] == out.split(b"\n")


@pytest.mark.parametrize("value", [b"\xff", "ü".encode(), b"a\nb", b"="])
def test_run_keeps_the_bytes_of_the_environment(value):
    """A variable that is not UTF-8 reaches the command unchanged."""
    launch = Launch(is_measured=False)
    process = subprocess.run(
        [*LAUNCHER, "/usr/bin/env", "-0"], env={b"NAME": value}, capture_output=True, check=False, timeout=60
    )

    assert b"NAME=" + value + b"\0" == process.stdout
    launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
def test_run_ends_with_the_exit_status_of_the_command(consent):
    """Each exit status from 0 to 255 is passed on, and no process is left."""
    launch = Launch(BASIC | consent, is_measured=False)

    def read_status(status: int) -> int:
        return launch.run(["sh", "-c", f"exit {status}"]).returncode

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(read_status, range(256)))

    assert list(range(256)) == statuses
    launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGABRT"])
def test_run_ends_by_the_signal_that_ends_the_command(name, consent):
    """A signal to the process ends the command as it would without `run`, and no process is left."""
    launch = Launch(BASIC | consent)
    process = launch.start(["sh", "-c", "ulimit -c 0; echo ready; exec cat"])

    assert "ready\n" == process.stdout.readline()
    process.send_signal(signal.Signals[name])
    _, err = process.communicate()

    assert (-signal.Signals[name], "") == (process.returncode, err)
    launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
def test_an_interrupt_before_the_command_starts_ends_it_silently(consent):
    """SIGINT ends the launcher as it would end the command: right after its start, and from its first line on."""
    launch = Launch(BASIC | consent, is_measured=False)
    at_birth = launch.start(["sleep", "60"])
    # Python installs its own handler while it starts, which the launcher cannot prevent.
    poll_until(lambda: interrupt(at_birth), waiting_for="a moment without Python's handler")
    later = [launch.start(["sleep", "60"]) for _ in range(20)]
    for process in later:
        poll_until(
            lambda process=process: has_begun(process.pid) and interrupt(process),
            waiting_for="the launcher's first line",
        )

    for process in (at_birth, *later):
        _, err = process.communicate()
        assert (-signal.SIGINT, "") == (process.returncode, err)
    launch.wait_for_end()


def interrupt(process: subprocess.Popen) -> bool:
    """Sends SIGINT unless the process catches it, and returns whether it was sent.

    The process is stopped meanwhile. If it ran, it could come to Python's handler before the signal arrives.
    """
    process.send_signal(signal.SIGSTOP)
    poll_until(lambda: "(stopped)" in read_status(process.pid), waiting_for="the process to stop")
    is_caught = catches_interrupt(read_status(process.pid))
    if not is_caught:
        process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    return not is_caught


def read_status(pid: int) -> str:
    """Returns the process's state, and what it does with its signals."""
    return Path(f"/proc/{pid}/status").read_text()


def catches_interrupt(status: str) -> bool:
    """Returns whether a process with this *status* has a handler for SIGINT."""
    caught = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE).group(1), 16)
    return bool(caught >> (signal.SIGINT - 1) & 1)


def has_begun(pid: int) -> bool:
    """Returns whether the process no longer catches SIGINT, as in the launcher's first line."""
    status = read_status(pid)
    ignored = int(re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE).group(1), 16)
    # Python ignores SIGPIPE right before it catches SIGINT; the command has SIGPIPE at its default again.
    is_python = ignored >> (signal.SIGPIPE - 1) & 1
    is_command = "sleep" in status.partition("\n")[0]
    return bool(is_command or (is_python and not catches_interrupt(status)))


def test_the_relay_holds_nothing_of_the_caller(tmp_path):
    """Pipes and locks of the caller are free when the command ends, although the relay still runs."""
    launch = Launch(BASIC | CONSENT)
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = launch.start(["cat"], pass_fds=(lock,), cwd=tmp_path)
    os.close(lock)
    relay = launch.wait_for_relay()
    os.kill(relay, signal.SIGSTOP)

    out, err = process.communicate("through\n")
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)

    assert (0, "through\n", "") == (process.returncode, out, err)
    assert [relay] == launch.relays()
    os.kill(relay, signal.SIGCONT)
    launch.wait_for_end()


def test_the_relay_leaves_the_directory_and_keeps_the_secret_out_of_its_arguments(tmp_path):
    """The relay is in `/`, in a new session, and its arguments, which every user can read, have no secret."""
    launch = Launch(BASIC | CONSENT)
    process = launch.start(["sh", "-c", f"echo ${ADDRESS}; exec cat"], cwd=tmp_path)
    secret = process.stdout.readline().strip().rpartition("/")[2]
    relay = launch.wait_for_relay()

    poll_until(lambda: os.readlink(f"/proc/{relay}/cwd") == "/", waiting_for="the relay in /")
    assert relay != os.getsid(process.pid)
    assert os.getsid(relay) != os.getsid(process.pid)
    assert re.fullmatch("[0-9a-f]{32}", secret)
    assert secret.encode() not in Path(f"/proc/{relay}/cmdline").read_bytes()
    process.communicate()
    launch.wait_for_end()


def test_the_relay_is_not_the_command_s_child():
    """The command sees no child that it did not start itself: its own wait for all children returns at once."""
    launch = Launch(BASIC | CONSENT)
    process = launch.start(["sh", "-c", "echo ready; exec cat"])
    relay = launch.wait_for_relay()

    assert "ready\n" == process.stdout.readline()
    assert not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    assert process.pid != int(Path(f"/proc/{relay}/stat").read_text().rpartition(")")[2].split()[1])
    process.communicate()
    launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
@pytest.mark.parametrize(
    ("name", "mode", "content", "status"),
    [
        ("missing", None, "", 127),
        ("missing/below", None, "", 127),
        ("plain", 0o644, "#!/bin/sh\n", 126),
        ("binary of another machine", 0o755, "\x7fELF\0\0\0", 126),
        ("no interpreter", 0o755, "#!/nonexistent/sh\n", 127),
        (".", None, "", 126),
    ],
)
def test_a_command_that_cannot_be_executed_is_one_line(name, mode, content, status, consent, tmp_path):
    """The status is 127 or 126, stderr has one line without the command's name, and no relay is left."""
    path = tmp_path / name
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    launch = Launch(BASIC | consent)

    finished = launch.run([str(path)])

    assert (status, "") == (finished.returncode, finished.stdout)
    about = "command's interpreter was not found" if name == "no interpreter" else "command "
    assert finished.stderr.startswith(f"otel-tbot: run: the {about}")
    assert 1 == finished.stderr.count("\n")
    assert str(tmp_path) not in finished.stderr
    launch.wait_for_end()


def test_a_command_without_a_name_is_one_line():
    """An empty name is not found."""
    finished = Launch(BASIC, is_measured=False).run([""])

    assert (127, "") == (finished.returncode, finished.stdout)
    assert "otel-tbot: run: the command was not found; check its name and PATH\n" == finished.stderr


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
@pytest.mark.parametrize("name", ["found in PATH", "by its path"])
@pytest.mark.parametrize("content", [b'echo "$0" "$@"; exit 3', b""], ids=["script", "empty"])
def test_a_script_without_an_interpreter_is_run_as_env_runs_it(content, name, consent, tmp_path):
    """A script without `#!` is run by /bin/sh, with the same name, arguments and status."""
    script = tmp_path / "script"
    script.write_bytes(content)
    script.chmod(0o755)
    command = ["script" if name == "found in PATH" else str(script), "a b", "", "-x"]
    launch = Launch(BASIC | consent | {"PATH": f"/nonexistent:{tmp_path}:/usr/bin:/bin"})

    by_env = launch.run(command, launcher=("/usr/bin/env",))
    behind = launch.run(command)
    launch.wait_for_end()

    assert (by_env.returncode, by_env.stdout, by_env.stderr) == (behind.returncode, behind.stdout, behind.stderr)
    assert (3 if content else 0) == behind.returncode


@pytest.mark.parametrize("names", [("plain", "good"), ("good", "plain")])
def test_a_file_that_cannot_be_executed_does_not_hide_one_that_can(names, tmp_path):
    """PATH is searched to its end, as execvp does."""
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("#!/bin/sh\necho mine\n")
        (tmp_path / name / "mine").chmod(0o755 if name == "good" else 0o644)
    path = ":".join(str(tmp_path / name) for name in names)

    finished = Launch({"PATH": path}).run(["mine"])

    assert (0, "mine\n", "") == (finished.returncode, finished.stdout, finished.stderr)


@pytest.mark.parametrize("encoding", ["EUC-JP", "EUC-KR", "BIG5", "GB18030", "ISO-8859-1", "UTF-8"])
def test_run_keeps_the_bytes_of_the_arguments_in_every_locale(encoding, tmp_path):
    """In each encoding, every pair of bytes reaches the command as it was, off and on, and the relay is there."""
    if shutil.which("localedef") is None:
        skip_or_fail("localedef is not installed")
    # Of a locale only the encoding matters here; POSIX has the shortest rules, so it is made the fastest.
    made = ["localedef", "-c", "-i", "POSIX", "-f", encoding, str(tmp_path / f"test.{encoding}")]
    subprocess.run(made, capture_output=True, check=False)
    if not (tmp_path / f"test.{encoding}").exists():
        skip_or_fail(f"localedef cannot make a locale with {encoding}")
    firsts = [bytes([first]) for first in range(0x80, 0x100)]
    arguments = [b"".join(first + bytes([second]) for second in range(1, 0x100)) for first in firsts]

    for consent in ({}, CONSENT):
        environ = BASIC | {"LOCPATH": str(tmp_path), "LC_ALL": f"test.{encoding}"} | consent
        launch = Launch(environ, is_measured=False)
        process = launch.start([b"/usr/bin/printf", b"%s\\0", *arguments], text=False)
        out, err = process.communicate()
        launch.wait_for_end()

        assert (0, b"") == (process.returncode, err)
        assert [*arguments, b""] == out.split(b"\0")


@pytest.mark.parametrize("path", [None, "", "relative", "/usr/bin:/bin"])
def test_run_finds_the_command_as_a_shell_would(path, tmp_path):
    """A name without a slash is looked up in PATH."""
    directory = tmp_path / "relative"
    directory.mkdir()
    environ = {} if path is None else {"PATH": path}
    (directory / "mine").write_text("#!/bin/sh\necho mine\n")
    (directory / "mine").chmod(stat.S_IRWXU)

    finished = Launch(environ, is_measured=False).run(["mine"], cwd=tmp_path)

    assert ((0, "mine\n") if path == "relative" else (127, "")) == (finished.returncode, finished.stdout)


@pytest.mark.parametrize("value", [*OFF_VALUES, "1"])
def test_off_opens_no_socket_no_process_and_nothing_of_opentelemetry(value, strace, tmp_path):
    """Until the command is executed, only a granted consent makes a socket or a process; OpenTelemetry is never read.

    What a start of the interpreter alone does is in the trace too: files, but no socket if HOME is set.
    """
    environ = BASIC if value is None else {**BASIC, "TELEPORT_ANONYMOUS_TELEMETRY": value}
    launch = Launch(environ, is_measured=False)
    trace = tmp_path / "trace"
    # Without -f, so this is what the launcher's own process does until it becomes the command.
    finished = launch.run(["true"], launcher=(strace, "-o", trace, *LAUNCHER))
    launch.wait_for_end()
    calls = trace.read_text().splitlines()
    command = next(i for i, call in enumerate(calls) if re.match(r'execve\("[^"]*/true"', call))
    before = calls[:command]

    is_on = value == "1"
    assert (0, "", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert is_on == any(re.match(r"(socket|bind|listen)\(", call) for call in before)
    assert is_on == any(re.match(r"(fork|vfork|clone3?|pidfd_open)\(", call) for call in before)
    assert not [call for call in before if "opentelemetry" in call]
    assert not [call for call in before if re.match(r"(connect|sendto|sendmsg)\(", call)]


@pytest.mark.parametrize("value", [*OFF_VALUES, "1"])
def test_off_imports_only_the_launcher(value):
    """While telemetry is off, the launcher imports three modules of this package and no other."""
    environ = BASIC if value is None else {**BASIC, "TELEPORT_ANONYMOUS_TELEMETRY": value}
    launch = Launch(environ, is_measured=False)
    launcher = (sys.executable, "-P", "-X", "importtime", "-m", "otel_tbot", "run", "--")
    bare = launch.run([], launcher=(sys.executable, "-P", "-X", "importtime", "-c", "import runpy"))

    finished = launch.run(["true"], launcher=launcher)
    launch.wait_for_end()

    def modules(text: str) -> set[str]:
        return {line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:")}

    ours = {"otel_tbot", "otel_tbot.consent", "otel_tbot.launcher"}
    on = {"otel_tbot.settings", "_socket"} if value == "1" else set()
    # Of runpy, which only -m takes, and of os.execvp, which site has loaded before Python 3.13.
    theirs = {"importlib", "importlib.machinery", "warnings"}
    assert ours | on == modules(finished.stderr) - modules(bare.stderr) - theirs


@pytest.mark.parametrize(
    "environ", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_SDK_DISABLED": "TRUE", ADDRESS: ""}], ids=["plain", "no address"]
)
def test_a_disabled_sdk_makes_the_report_fail(environ):
    """tbot's own variable is on, so tbot reports, to an address that never answers; nothing is printed."""
    launch = Launch(BASIC | CONSENT | environ)

    finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"])

    assert (0, UNREACHABLE_ADDRESS + "\n", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert not launch.relays()


def test_an_address_that_is_set_is_kept():
    """An address that is set, such as a bridge's, stays; one line says so, and no relay is started."""
    launch = Launch(BASIC | CONSENT | {ADDRESS: "http://127.0.0.1:1/canary"})

    finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"])

    assert (0, "http://127.0.0.1:1/canary\n") == (finished.returncode, finished.stdout)
    assert (
        f"otel-tbot: run: {ADDRESS} is already set, so the report goes there and no relay is started\n"
        == finished.stderr
    )
    assert not launch.relays()


@pytest.mark.parametrize("environ", [{"OTEL_SDK_DISABLED": "true"}, {"TELEPORT_ANONYMOUS_TELEMETRY": "0"}])
def test_an_address_that_is_set_is_kept_silently_while_off(environ):
    """While telemetry is off, the address stays and nothing is printed."""
    launch = Launch(BASIC | CONSENT | {ADDRESS: "http://127.0.0.1:1/"} | environ)

    finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"])

    assert (0, "http://127.0.0.1:1/\n", "") == (finished.returncode, finished.stdout, finished.stderr)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("sys.executable = ''", "the Python interpreter does not know its own path"),
        ("sys.executable = None", "the Python interpreter does not know its own path"),
        ("sys.executable = '/nonexistent/python'", "the Python interpreter is no longer at its own path"),
        ("sys.frozen = True", "this program is frozen, so there is no Python interpreter to run the relay"),
        ("sys.path.append(1)", "TypeError"),
        ("sys.modules['_socket'] = None", "ModuleNotFoundError"),
        ("import os; os.urandom = None", "TypeError"),
    ],
)
def test_an_interpreter_with_a_fault_still_executes_the_command(fault, reason):
    """Any error before exec is one line; tbot starts, and its report fails."""
    # Not measured: coverage itself would fail with some of these.
    launch = Launch(BASIC | CONSENT, is_measured=False)

    finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"], launcher=launcher_after(fault))

    assert (0, UNREACHABLE_ADDRESS + "\n") == (finished.returncode, finished.stdout)
    assert f"otel-tbot: run: no relay ({reason}); the event is not sent\n" == finished.stderr
    launch.wait_for_end()


def launcher_after(statement: str) -> tuple[str, ...]:
    """Returns the launcher in an interpreter that runs *statement* first."""
    script = f"import sys; {statement}; from otel_tbot.__main__ import main; main()"
    return (sys.executable, "-P", "-c", script, "run", "--")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("socket:error=EMFILE", "Too many open files"),
        ("bind:error=EADDRINUSE", "Address already in use"),
        ("listen:error=EACCES", "Permission denied"),
        ("clone,clone3,fork,vfork:error=EAGAIN", "Resource temporarily unavailable"),
        ("setsid:error=EPERM", "its process could not be started"),
        ("setsid:signal=KILL", "its process was killed"),
    ],
)
def test_the_command_runs_if_no_relay_can_be_started(fault, reason, strace):
    """Without a port, a descriptor or a process, tbot starts, one line says why, and its report fails."""
    launch = Launch(BASIC | CONSENT)
    command = ["sh", "-c", f"exec echo ${ADDRESS}"]

    injected = (strace, "-f", "-o", "/dev/null", "-e", f"inject={fault}:when=1", *LAUNCHER)
    finished = launch.run(command, launcher=injected)

    assert (0, UNREACHABLE_ADDRESS + "\n") == (finished.returncode, finished.stdout)
    assert f"otel-tbot: run: no relay ({reason}); the event is not sent\n" == finished.stderr
    launch.wait_for_end()


@pytest.mark.parametrize("fault", ["error=ENOSYS", "error=EPERM", "signal=KILL"])
def test_the_relay_does_not_need_a_pidfd(fault, strace):
    """A kernel or sandbox without pidfd_open, or a policy that kills for it, costs neither tbot nor the event."""
    launch = Launch(BASIC | CONSENT)
    # strace detaches at exec, so only the launcher and its forks are traced.
    injected = (strace, "-f", "-b", "execve", "-o", "/dev/null", "-e", f"inject=pidfd_open:{fault}")
    waiting = (*injected, sys.executable, "-P", "-m", "otel_tbot", "run", "--")

    finished = launch.run(["sh", "-c", f"exec echo ${ADDRESS}"], launcher=waiting)
    relay = launch.wait_for_relay()

    assert (0, "") == (finished.returncode, finished.stderr)
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]*/[0-9a-f]{32}\n", finished.stdout)
    assert b"\0pid\0" in Path(f"/proc/{relay}/cmdline").read_bytes()
    os.kill(relay, signal.SIGKILL)
    launch.wait_for_end()


def limited(limit: int) -> tuple[str, ...]:
    """Returns the launcher at a limit of open files."""
    return ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *LAUNCHER)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_command_starts_with_few_descriptors(protocol):
    """At every limit at which the interpreter starts, tbot starts, and one line says if there is no relay."""
    for limit in range(6, 24):
        launch = Launch(BASIC | CONSENT | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}, is_measured=False)

        finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"], launcher=limited(limit))
        launch.wait_for_end()

        has_relay = limit >= MIN_DESCRIPTORS[protocol]
        assert 0 == finished.returncode
        assert finished.stdout.startswith("http://127.0.0.1:")
        assert has_relay == (finished.stdout != UNREACHABLE_ADDRESS + "\n")
        assert has_relay == (finished.stderr == "")
        assert finished.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"OTEL_TBOT_TIMEOUT": "canary"},
            "OTEL_TBOT_TIMEOUT: must be a whole number of milliseconds from 1 to 999999; using 3000",
        ),
        (
            {"OTEL_TBOT_SIGNAL": "canary", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_TBOT_SIGNAL: must be log or span; using log; OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf or "
            "grpc; using http/protobuf, or grpc if the endpoint's port is 4317",
        ),
    ],
)
def test_malformed_settings_are_one_line_and_the_relay_is_there(environ, line):
    """A malformed setting is reported once, without its value, and its default is used."""
    launch = Launch(BASIC | CONSENT | environ)
    process = launch.start(["sh", "-c", f"echo ${ADDRESS}; exec cat"])

    assert UNREACHABLE_ADDRESS != process.stdout.readline().strip()
    launch.wait_for_relay()
    _, err = process.communicate()

    assert (0, f"otel-tbot: run: {line}\n") == (process.returncode, err)
    launch.wait_for_end()


def test_a_malformed_endpoint_makes_the_report_fail():
    """If the endpoint is not a URL, nothing is sent: the default may be another collector."""
    launch = Launch(BASIC | CONSENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": "canary canary"})

    finished = launch.run(["sh", "-c", f"echo ${ADDRESS}"])

    assert (0, UNREACHABLE_ADDRESS + "\n") == (finished.returncode, finished.stdout)
    assert 1 == finished.stderr.count("\n")
    assert finished.stderr.startswith("otel-tbot: run: OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or https:// URL")
    assert "no relay (there is no valid endpoint; run `otel-tbot doctor`); the event is not sent\n" in finished.stderr
    assert "canary" not in finished.stderr
    assert not launch.relays()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_descriptors_do_not_matter(closed):
    """The command runs with its standard descriptors closed, and the relay does not get their numbers."""
    launch = Launch(BASIC | CONSENT, is_measured=False)
    closing = "".join(f" {fd}>&-" for fd in closed)

    finished = launch.run(["-c", f'exec "$@" {closing}', "sh", *LAUNCHER, "sh", "-c", "exit 7"], launcher=("/bin/sh",))

    assert 7 == finished.returncode
    launch.wait_for_end()


def test_a_closed_stderr_does_not_matter():
    """If stderr is closed, tbot starts without the message."""
    launch = Launch(BASIC | CONSENT | {"OTEL_TBOT_TIMEOUT": "canary"})

    finished = launch.run(["sh", "-c", "exit 7"], launcher=("sh", "-c", 'exec "$@" 2>&-', "sh", *LAUNCHER))

    assert 7 == finished.returncode
    launch.wait_for_end()


@pytest.mark.parametrize("consent", [{}, CONSENT], ids=["off", "on"])
@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_no_descriptor_of_the_relay_reaches_the_command(closed, consent, tmp_path):
    """A command whose standard descriptors are closed finds them closed, and no other descriptor open."""
    launch = Launch(BASIC | consent, is_measured=False)
    closing = "".join(f" {fd}>&-" for fd in closed)
    listing = tmp_path / "listing"

    def list_descriptors(*front: str) -> list[str]:
        command = [*front, "sh", "-c", f"ls -l /proc/$$/fd > {listing} 2>&1"]
        launch.run(["-c", f'exec "$@" {closing}', "sh", *command], launcher=("/bin/sh",))
        return re.findall(r"[0-9]+ -> [^\n\[]+", listing.read_text())

    direct = list_descriptors()
    behind = list_descriptors(*LAUNCHER)
    launch.wait_for_end()

    assert direct
    assert direct == behind


@pytest.mark.parametrize(
    "consent", [{}, CONSENT, CONSENT | {"OTEL_TBOT_TIMEOUT": "canary"}], ids=["off", "on", "warning"]
)
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "<&- >&- 2>&-", "2>&4 4>&-"])
@pytest.mark.parametrize(("command", "status"), [("/nonexistent", 127), ("/", 126)])
def test_the_status_does_not_depend_on_a_stderr_that_can_be_written(command, status, stderr, consent):
    """If stderr is closed, full or a pipe that nothing reads, the status is the same."""
    launch = Launch(BASIC | consent, is_measured=False)
    reader, writer = os.pipe()
    os.close(reader)
    script = f'exec 4>&{writer} {writer}>&-; exec "$@" {stderr}'

    finished = launch.run(["-c", script, "sh", *LAUNCHER, command], launcher=("/bin/bash",), pass_fds=[writer])
    os.close(writer)
    launch.wait_for_end()

    assert status == finished.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_relay_ends_with_the_command(number):
    """If the command ends without a report, the relay ends too."""
    launch = Launch(BASIC | CONSENT)
    process = launch.start(["cat"])
    launch.wait_for_relay()

    process.send_signal(number)
    process.communicate()

    launch.wait_for_end()


def test_run_works_as_a_module_and_without_the_dashes():
    """`python -m otel_tbot run COMMAND` is the same, and what follows the command is the command's."""
    launch = Launch(BASIC)

    launcher = (sys.executable, "-P", "-m", "otel_tbot", "run")
    finished = launch.run(["echo", "--help", "--"], launcher=launcher)

    assert (0, "--help --\n", "") == (finished.returncode, finished.stdout, finished.stderr)
