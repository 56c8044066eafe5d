"""Executes the command of `otel-tbot run -- COMMAND`, and starts a relay for its report first.

This is on tbot's start path, so it uses os, sys and what they have already loaded: socket, typing or dataclasses alone
would double the time. If anything fails here, the command is still executed.
"""

import os
import sys

from otel_tbot.consent import ADDRESS_VARIABLE, CONSENT_VARIABLE, is_granted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final, NoReturn

UNREACHABLE_ADDRESS: "Final" = "http://127.0.0.1:0"
"""An address that never answers. Without an address, tbot would report to Teleport over the internet."""

# The relay's descriptors: what listens for tbot, and the pidfd that reports tbot's end.
LISTENER_FD: "Final" = 3
COMMAND_FD: "Final" = 4

# How the relay learns that the command has ended.
WATCH_FD: "Final" = "fd"
WATCH_PID: "Final" = "pid"

PATH_VARIABLE: "Final" = "OTEL_TBOT_RELAY_PATH_"
"""The relay's variables PATH_VARIABLE0, PATH_VARIABLE1 and so on hold one entry of sys.path each."""

MIN_DESCRIPTORS: "Final" = {"http/protobuf": 9, "grpc": 12}
"""The smallest limit of open files with which a relay delivers its event, by protocol (measured)."""

QUEUE_LENGTH: "Final" = 128
"""How many connections wait to be accepted. More than the relay serves at once: others would be delayed by seconds."""

_START_RELAY: "Final" = (
    f"import os, sys; sys.path[:] = [os.environ.pop(f'{PATH_VARIABLE}{{n}}') for n in range(int(sys.argv[1]))]; "
    "from otel_tbot.relay.process import main; main(*sys.argv[2:])"
)

# What CPython puts into LC_CTYPE if it finds the C locale (PEP 538).
_C_LOCALES = ("", "C", "POSIX")
_COERCED_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")

# In these encodings, the str in sys.argv always encodes to the bytes that it was decoded from.
_EXACT_ENCODINGS = ("utf-8", "ascii", "iso8859-1")

_ENOEXEC = 8  # on Linux and macOS; errno would be one more import
_MAX_DESCRIPTORS = 1 << 20
_SCRIPT_HEAD_BYTES = 256


class NoRelayError(Exception):
    """A relay cannot be started; the text says why."""


class _CommandError(Exception):
    """The command cannot be executed: the exit status and the message."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def run(arguments: list[str]) -> int:
    """Executes the command in *arguments*; if that succeeds, this does not return, otherwise it returns the status.

    If telemetry is off, it only executes the command. If it is on, a relay first starts to listen for the report, and
    the address variable names it. The status is 127 if the command is not found and 126 if it cannot be executed; one
    line on stderr says why.
    """
    try:
        _undo_locale_coercion()
        if os.environ.get(CONSENT_VARIABLE) is not None:
            _redirect_report()
    except Exception as error:  # noqa: BLE001  # the last edge before exec: tbot must start
        os.environ[ADDRESS_VARIABLE] = UNREACHABLE_ADDRESS
        _print_error(f"no relay ({type(error).__name__}); the event is not sent")
    return _execute(arguments)


def _redirect_report() -> None:
    """Sets the address variable to a new relay, or to an address that never answers; keeps an address that is set."""
    if not is_granted({CONSENT_VARIABLE: os.environ[CONSENT_VARIABLE]}):
        return
    is_off = not is_granted(os.environ)
    if os.environ.get(ADDRESS_VARIABLE):
        if not is_off:
            _print_error(f"{ADDRESS_VARIABLE} is already set, so the report goes there and no relay is started")
        return
    if is_off:
        os.environ[ADDRESS_VARIABLE] = UNREACHABLE_ADDRESS
        return
    from otel_tbot import settings

    warnings = list(settings.find_warnings(os.environ))
    try:
        os.environ[ADDRESS_VARIABLE] = start_relay(os.environ)
    except NoRelayError as error:
        os.environ[ADDRESS_VARIABLE] = UNREACHABLE_ADDRESS
        warnings.append(f"no relay ({error}); the event is not sent")
    if warnings:
        _print_error("; ".join(warnings))


def start_relay(environ: "Mapping[str, str]") -> str:
    """Starts a relay that ends with this process; returns the address to report to.

    *environ* is the relay's environment. The socket listens when this returns, so a report that is sent at once waits
    in its queue.

    Raises:
        NoRelayError: the relay cannot be started, or could not send anything.
    """
    from otel_tbot import settings

    signal = settings.SIGNAL.resolve(environ)
    if not settings.has_endpoint(environ, signal):
        raise NoRelayError("there is no valid endpoint; run `otel-tbot doctor`")
    _check_interpreter()
    min_descriptors = MIN_DESCRIPTORS[settings.resolve_protocol(environ, signal)]
    if -1 < os.sysconf("SC_OPEN_MAX") < min_descriptors:
        raise NoRelayError(f"the limit of open files must be at least {min_descriptors}; see ulimit -n")
    try:
        return _listen(environ)
    except OSError as error:
        raise NoRelayError(error.strerror) from None


def _check_interpreter() -> None:
    """Raises NoRelayError if sys.executable cannot run the relay."""
    if not sys.executable:
        raise NoRelayError("the Python interpreter does not know its own path")
    if getattr(sys, "frozen", False):
        raise NoRelayError("this program is frozen, so there is no Python interpreter to run the relay")
    if not os.path.exists(sys.executable):
        raise NoRelayError("the Python interpreter is no longer at its own path")


def _listen(environ: "Mapping[str, str]") -> str:
    import _socket

    # Also fills descriptors 0 to 2 if the caller closed them, so that the listener does not get their numbers.
    null_fd = _dup_above(os.open(os.devnull, os.O_RDWR), 2)
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(QUEUE_LENGTH)
        # Other local users can find the port. They cannot guess this path, so they cannot report in tbot's name.
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{os.urandom(16).hex()}"
        # Entries and address are in the environment and never in the arguments, which every user can read.
        path = _list_import_path()
        variables = {f"{PATH_VARIABLE}{number}": entry for number, entry in enumerate(path)}
        variables[ADDRESS_VARIABLE] = address
        command = [sys.executable, *_list_interpreter_options(environ), "-c", _START_RELAY, str(len(path))]
        for watch in (WATCH_FD, WATCH_PID):
            if _fork_relay((listener.fileno(), null_fd), watch, command, environ, variables):
                return address
        raise NoRelayError("its process was killed")
    finally:
        listener.close()
        os.close(null_fd)


def _fork_relay(
    fds: tuple[int, int], watch: str, command: list[str], environ: "Mapping[str, str]", variables: dict[str, str]
) -> bool:
    """Starts the relay as a grandchild; returns whether it was started, and False if a signal prevented that.

    tbot would see a child in its own waits, and a child that ends would stay a zombie. The pidfd is opened behind the
    first fork, because a seccomp policy may kill the process that asks for it.
    """
    command_pid = os.getpid()
    child_pid = os.fork()
    if child_pid == 0:
        try:
            os.setsid()
            command_fd = -1
            if watch == WATCH_FD:
                try:
                    command_fd = os.pidfd_open(command_pid)
                except (AttributeError, OSError):  # not Linux, or an old kernel, or a sandbox
                    watch = WATCH_PID
            if os.fork() == 0:
                _keep_only(*fds, command_fd)
                os.execve(sys.executable, [*command, watch, str(command_pid)], {**environ, **variables})
            os._exit(0)
        finally:
            os._exit(1)
    try:
        _, status = os.waitpid(child_pid, 0)
    except ChildProcessError:  # SIGCHLD is ignored, so the kernel has discarded the status
        return True
    if os.WIFSIGNALED(status):
        return False
    if status:
        raise NoRelayError("its process could not be started")
    return True


def _keep_only(listener_fd: int, null_fd: int, command_fd: int) -> None:
    """Leaves the relay its own descriptors, under the numbers that it expects, and no signal blocked."""
    import _signal  # type: ignore[import-not-found]  # see __main__

    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    listener_fd, command_fd = _dup_above(listener_fd, COMMAND_FD), _dup_above(command_fd, COMMAND_FD)
    for standard_fd in (0, 1, 2):
        os.dup2(null_fd, standard_fd)
    os.dup2(listener_fd, LISTENER_FD)
    if command_fd >= 0:
        os.dup2(command_fd, COMMAND_FD)
    _close_from(COMMAND_FD + (command_fd >= 0))


def _list_interpreter_options(environ: "Mapping[str, str]") -> list[str]:
    """Returns options that isolate an interpreter from PYTHON* variables, the user's directory and the current one."""
    # Without PYTHONHOME, which -I ignores, an interpreter that was moved does not find its own library.
    is_told_its_home = "PYTHONHOME" in environ and not sys.flags.ignore_environment
    options = ["-s", "-P"] if is_told_its_home else ["-I"]
    if sys.dont_write_bytecode:
        options.append("-B")
    if sys.pycache_prefix:
        options += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    # In UTF-8 mode every byte of a path survives, whatever the locale is.
    return [*options, "-X", "utf8"]


def _list_import_path() -> list[str]:
    """Returns sys.path as absolute paths, without the working directory, which may hold modules of any name.

    The directory or archive of this package comes last, in case it was found in the working directory or by a hook.
    """
    try:
        working_directory = os.getcwd()
    except OSError:  # it was removed
        working_directory = ""
    entries = [os.path.join(working_directory, entry) for entry in sys.path if entry]
    package_parent = os.path.join(working_directory, os.path.dirname(os.path.dirname(__file__)))
    return [*(entry for entry in entries if os.path.normpath(entry) != working_directory), package_parent]


def _dup_above(fd: int, last_fd: int) -> int:
    """Returns *fd*, or a duplicate if it is not above *last_fd*; the numbers below stay in use. -1 stays -1."""
    while 0 <= fd <= last_fd:
        fd = os.dup(fd)
    return fd


def _close_from(first_fd: int) -> None:
    try:
        open_fds = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # no /dev or no /proc
        limit = os.sysconf("SC_OPEN_MAX")
        os.closerange(first_fd, limit if 0 < limit < _MAX_DESCRIPTORS else _MAX_DESCRIPTORS)
        return
    for fd in open_fds:
        if fd >= first_fd:
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor that listdir itself had open


def _execute(arguments: list[str]) -> int:
    import _signal

    # Python ignores both signals for itself, and a program executed next would inherit that.
    signals = [getattr(_signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(_signal, name)]
    for number in signals:
        _signal.signal(number, _signal.SIG_DFL)
    try:
        _replace_process(_encode_arguments(arguments))
    except _CommandError as error:
        # Otherwise a message to a closed pipe would end this process with SIGPIPE instead of the status.
        for number in signals:
            _signal.signal(number, _signal.SIG_IGN)
        _print_error(error.text)
        return error.status


def _replace_process(command: list[bytes]) -> "NoReturn":
    """Executes *command* as a shell and `env` do: searches PATH, and gives a script without `#!` to /bin/sh.

    Raises:
        _CommandError: the command cannot be executed.
    """
    name = command[0]
    directories = os.environb.get(b"PATH", os.defpath.encode()).split(b":")
    failure = _CommandError(127, "the command was not found; check its name and PATH")
    if not name:
        raise failure
    for path in [name] if b"/" in name else [os.path.join(directory, name) for directory in directories]:
        try:
            os.execv(path, command)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(path):
                text = "the command's interpreter was not found; check the first line of its file"
                raise _CommandError(127, text) from None
        except OSError as error:
            if error.errno == _ENOEXEC:
                _execute_script(path, command)
            if failure.status == 127:  # noqa: PLR2004  # as shells do: not found
                failure = _CommandError(126, f"the command cannot be executed: {error.strerror}")
    raise failure


def _execute_script(path: bytes, command: list[bytes]) -> None:
    """Executes *path* by /bin/sh, unless it is a program for another machine; returns if that fails."""
    try:
        with open(path, "rb", buffering=0) as file:
            first_line = file.read(_SCRIPT_HEAD_BYTES).partition(b"\n")[0]
        if b"\0" not in first_line:
            os.execv("/bin/sh", [b"/bin/sh", path, *command[1:]])
    except OSError:
        pass  # the caller reports the first failure


def _encode_arguments(arguments: list[str]) -> list[bytes]:
    """Returns the bytes of *arguments*, the last of this process.

    In a locale with an encoding such as EUC-JP, str does not keep them, so the kernel's copy is read.
    """
    if sys.getfilesystemencoding() not in _EXACT_ENCODINGS:
        try:
            with open("/proc/self/cmdline", "rb") as file:
                original = file.read().split(b"\0")[:-1]
            if len(original) > len(arguments):
                return original[-len(arguments) :]
        except OSError:
            pass  # no /proc
    try:
        return [os.fsencode(argument) for argument in arguments]
    except UnicodeEncodeError:
        text = "the command cannot be executed: this locale cannot express its arguments; use a UTF-8 locale"
        raise _CommandError(126, text) from None


def _undo_locale_coercion() -> None:
    """Removes the LC_CTYPE that CPython adds if it finds the C locale, or restores the value that it replaced.

    Python appends the variable if it was unset. If it was set, only the kernel's copy of the environment still has the
    old value. That copy is not read in the plain case, because nothing is opened while telemetry is off.
    """
    if os.environ.get("LC_CTYPE") not in _COERCED_LOCALES:
        return
    is_forced = "PYTHONUTF8" in os.environ or "utf8" in sys._xoptions  # noqa: SLF001  # documented
    if not (is_forced or sys.flags.utf8_mode):
        return  # the user's choice: Python turns its UTF-8 mode on for the C locale only
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


def _print_error(text: str) -> None:
    try:
        os.write(2, f"otel-tbot: run: {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # stderr is closed or full, and tbot must start
