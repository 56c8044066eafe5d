"""`otel-tbot run -- COMMAND`: a command line goes in, the command itself comes out, with a relay beside it.

On the start path of tbot: only os, sys and what they have loaded already, since socket, typing or dataclasses alone
would double the start. Whatever fails here, the command is executed all the same.
"""

import os
import sys

from otel_tbot.consent import ADDRESS_VARIABLE, CONSENT_VARIABLE, SDK_DISABLED_VARIABLE, is_granted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

NOWHERE: "Final" = "http://127.0.0.1:0"
"""Where nothing can answer: without an address, tbot would report to Teleport over the internet."""

LISTENER_FD: "Final" = 3
COMMAND_FD: "Final" = 4
WATCH_FD: "Final" = "fd"
WATCH_PID: "Final" = "pid"

# Values that CPython puts into LC_CTYPE when it finds the C locale (PEP 538).
_C_LOCALES = ("", "C", "POSIX")
_COERCED_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")


class NoRelayError(Exception):
    """There can be no relay, for the reason that is its text."""


def run(arguments: list[str]) -> int:
    """Executes the command in *arguments*, which does not return; returns the exit status where that fails.

    Off, the command is executed at once. On, a relay listens for its report, and the address variable names it.
    127: not found; 126: not executable. The reason is one line on stderr.
    """
    try:
        _undo_locale_coercion()
        if os.environ.get(CONSENT_VARIABLE) is not None:
            _redirect_report()
    except Exception as error:  # noqa: BLE001  # before exec nothing may keep tbot from starting
        os.environ[ADDRESS_VARIABLE] = NOWHERE
        _say(f"no relay ({type(error).__name__}); the event is not sent")
    return _execute(arguments)


def _redirect_report() -> None:
    """Sets the address variable to a relay of our own, or to nowhere, or leaves it alone where it was set."""
    if not is_granted({**os.environ, SDK_DISABLED_VARIABLE: ""}):
        return
    is_off = not is_granted(os.environ)
    if os.environ.get(ADDRESS_VARIABLE):
        if not is_off:
            _say(f"{ADDRESS_VARIABLE} is set and left alone: the report goes there")
        return
    if is_off:
        os.environ[ADDRESS_VARIABLE] = NOWHERE
        return
    from otel_tbot import settings

    faults = list(settings.find_warnings(os.environ))
    try:
        if not settings.has_endpoint(os.environ, settings.SIGNAL.resolve(os.environ)):
            raise NoRelayError("there is no endpoint; see `otel-tbot doctor`")
        _start_relay()
    except (NoRelayError, OSError) as error:
        os.environ[ADDRESS_VARIABLE] = NOWHERE
        faults.append(f"no relay ({error.strerror if isinstance(error, OSError) else error}); the event is not sent")
    if faults:
        _say("; ".join(faults))


def _start_relay() -> None:
    """Listens on loopback, starts the relay behind the socket and names it in the address variable.

    The socket listens before the command is executed, so a report that is sent at once waits in its queue.
    """
    if not sys.executable:
        raise NoRelayError("the Python interpreter does not know its own path")
    # By hand, since importing importlib takes a fifth of what all of this takes.
    if not any(finder.find_spec("httptools", None) for finder in sys.meta_path):
        raise NoRelayError("it needs the extra `relay`: pip install 'otel-tbot[relay]'")

    import _socket

    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    # A path that nobody guesses: other local users can find the port, but report nothing in tbot's name.
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{os.urandom(16).hex()}"
    os.environ[ADDRESS_VARIABLE] = address
    _fork_relay(listener.fileno())
    # Kept open until exec closes it: closed now, a report that comes before the relay runs would be refused.
    listener.detach()


def _fork_relay(listener_fd: int) -> None:
    """Starts the relay as nobody's child: a child would show up in tbot's own waits and stay as a zombie."""
    command_pid = os.getpid()
    try:
        command_fd = os.pidfd_open(command_pid)
        watch = WATCH_FD
    except (AttributeError, OSError):  # not Linux, or a kernel or sandbox without it
        command_fd, watch = -1, WATCH_PID
    child_pid = os.fork()
    if child_pid == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become_relay(listener_fd, command_fd, watch, command_pid)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        _, status = os.waitpid(child_pid, 0)
    except ChildProcessError:  # SIGCHLD is ignored: the kernel has taken the status away
        status = 0
    if status:
        raise NoRelayError("it could not be started")


def _become_relay(listener_fd: int, command_fd: int, watch: str, command_pid: int) -> "NoReturn":
    """Replaces this process by the relay, which holds the listener, the command's end and nothing of the caller's."""
    import _signal  # type: ignore[import-not-found]  # see __main__

    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    listener_fd, command_fd = _lift(listener_fd), _lift(command_fd)
    null_fd = os.open("/dev/null", os.O_RDWR)
    for standard_fd in (0, 1, 2):
        os.dup2(null_fd, standard_fd)
    os.dup2(listener_fd, LISTENER_FD)
    if command_fd >= 0:
        os.dup2(command_fd, COMMAND_FD)
    _close_from(COMMAND_FD + (command_fd >= 0))
    # Not -m, which would look for modules in the working directory first; not -I, for PYTHONPATH may be how this
    # package is found at all. The secret path is in the environment, never in the arguments, which everybody can read.
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    start = "import sys; sys.path.append(sys.argv[1]); from otel_tbot.relay.process import main; main(*sys.argv[2:])"
    os.execv(sys.executable, [sys.executable, "-P", "-c", start, package_parent, watch, str(command_pid)])


def _lift(fd: int) -> int:
    """A duplicate of *fd* above the numbers that the relay's own descriptors get; -1 stays -1."""
    while 0 <= fd <= COMMAND_FD:
        fd = os.dup(fd)
    return fd


def _close_from(first_fd: int) -> None:
    # Not closerange to the limit, which can be in the billions.
    for name in os.listdir("/dev/fd"):
        if int(name) >= first_fd:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor that listdir itself had open


def _execute(arguments: list[str]) -> int:
    import _signal

    # Python ignores both for itself, and a program executed next would inherit that.
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(_signal, name):
            _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
    try:
        if not arguments[0]:
            raise FileNotFoundError
        os.execvp(arguments[0], arguments)
    except (FileNotFoundError, NotADirectoryError):
        _say("the command was not found; check its name and PATH")
        return 127
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name or an argument is malformed"
        _say(f"the command cannot be executed: {reason}")
        return 126


def _undo_locale_coercion() -> None:
    """Takes away the LC_CTYPE that CPython adds where it finds the C locale, or puts the replaced one back.

    Python appends a variable that was not there and replaces one that was, whose value is then only in the block that
    the kernel handed over. That is read where it can matter, and not in the plain case, since off opens no file.
    """
    if os.environ.get("LC_CTYPE") not in _COERCED_LOCALES:
        return
    is_forced = "PYTHONUTF8" in os.environ or "utf8" in sys._xoptions  # noqa: SLF001  # documented
    if not (is_forced or sys.flags.utf8_mode):
        return  # the user's own choice: Python turns its UTF-8 mode on for the C locale only
    is_last = list(os.environ)[-1] == "LC_CTYPE"
    if is_last and not is_forced and os.environ.get("LANG", "") in _C_LOCALES:
        del os.environ["LC_CTYPE"]
        return
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return
    before = [entry.partition(b"=")[2] for entry in entries if entry.startswith(b"LC_CTYPE=")]
    if before:
        os.environ["LC_CTYPE"] = os.fsdecode(before[0])
    else:
        del os.environ["LC_CTYPE"]


def _say(text: str) -> None:
    try:
        os.write(2, f"otel-tbot: run: {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # nobody is there to read it, and tbot has to start
