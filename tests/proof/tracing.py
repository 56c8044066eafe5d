"""Runs a command and returns its system calls, seen by strace, or its audit events, seen by the interpreter."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE_CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,unlink,unlinkat,rename,"
    "renameat,renameat2,truncate,memfd_create,inotify_init,inotify_init1,io_uring_setup"
)
_PROCESS_CALLS = "clone,clone3,fork,vfork,execve,execveat"

# Files that a dynamic program opens before its first line: the loader's cache, shared libraries, locales.
_SYSTEM_FILES = re.compile(
    r"/etc/ld\.so\.cache|(/usr)?/lib(32|64)?/([^/]+/)*[^/]+\.so(\.[0-9]+)*|/usr/lib/locale/.*|"
    r"(/usr)?/lib/[^/]+/gconv/gconv-modules(\.cache)?"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One system call, as strace prints it."""

    name: str
    text: str

    @property
    def path(self) -> str:
        """The first path among its arguments, or "" without a path."""
        found = re.search(r'"((?:[^"\\]|\\.)*)"', self.text)
        return found.group(1) if found else ""

    @property
    def writes(self) -> bool:
        """Whether it makes or changes a file."""
        if self.name in ("open", "openat", "openat2"):
            return re.search(r"O_WRONLY|O_RDWR|O_CREAT", self.text) is not None
        return self.name in _FILE_CALLS.split(",")


@dataclass(frozen=True, slots=True)
class Trace:
    """A finished command, and the calls that it and all its children made, in order."""

    finished: "subprocess.CompletedProcess[str]"
    calls: Sequence[Call]

    def before_command(self, name: str) -> "Trace":
        """Returns the trace up to the execution of the command *name*."""
        ends = [i for i, call in enumerate(self.calls) if call.name == "execve" and call.path.endswith(f"/{name}")]
        if not ends:
            raise AssertionError(f"{name} was never executed")
        return Trace(self.finished, self.calls[: ends[0]])

    def network(self) -> list[str]:
        """Returns every call that concerns a socket."""
        known = {*_FILE_CALLS.split(","), *_PROCESS_CALLS.split(",")}
        return [call.text for call in self.calls if call.name not in known]

    def processes(self) -> list[str]:
        """Returns every start of a thread or process, and every execution of a program except the first."""
        begun = [call.text for call in self.calls if call.name in _PROCESS_CALLS.split(",")]
        return begun[1:] if begun and begun[0].startswith("execve") else begun

    def files(self) -> list[str]:
        """Returns every opened file that is not the interpreter's, and every written file, by path."""
        return [
            f"{call.name} {call.path}"
            for call in self.calls
            if call.name in _FILE_CALLS.split(",")
            and (call.writes or not is_interpreters(call.path))
            # A file that does not exist was not opened.
            and not re.search(r"= -1 E(NOENT|NOTDIR)", call.text)
        ]

    def opened(self, text: str) -> list[str]:
        """Returns every path that contains *text* and that a call names."""
        return [call.path for call in self.calls if text in call.path and call.name in _FILE_CALLS.split(",")]

    def connected(self) -> set[str]:
        """Returns every address that a call connects or sends to, as strace prints it."""
        return {
            found.group()
            for call in self.calls
            if call.name in ("connect", "sendto", "sendmsg", "sendmmsg")
            for found in [re.search(r"\{sa_family=[^}]*\}", call.text)]
            if found
        }


def is_interpreters(path: str) -> bool:
    """Returns whether *path* belongs to the interpreter: its library, site-packages, or the loader's files."""
    roots = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    roots |= {os.path.realpath(root) for root in roots}
    normal = os.path.normpath(path)
    return any(normal == root or normal.startswith(root + "/") for root in roots) or bool(
        _SYSTEM_FILES.fullmatch(normal)
    )


def trace(command: Sequence[str], environ: Mapping[str, str], folder: Path, **options: Any) -> Trace:
    """Runs *command* under strace, with all its children, to its end."""
    written = folder / "trace"
    expression = f"trace=%network,{_FILE_CALLS},{_PROCESS_CALLS}"
    strace = ["strace", "-f", "--seccomp-bpf", "-qqq", "-s", "4096", "-e", expression, "-e", "signal=none"]
    # strace needs no environment, so the command gets exactly this one.
    finished = subprocess.run(  # noqa: PLW1510  # in the options
        [*strace, "-o", written, *command],
        **{"env": environ, "capture_output": True, "text": True, "check": False, "timeout": 120} | options,
    )
    calls = []
    for line in written.read_text(errors="replace").splitlines():
        found = re.match(r"(?:\d+\s+)?(\w+)\(", line)
        if found:
            calls.append(Call(found.group(1), line.partition(" ")[2].lstrip() if line[0].isdigit() else line))
    return Trace(finished, calls)


# Installed before anything else in the child runs. It keeps the events about sockets, threads, processes, files and
# imports, and writes them to a separate descriptor at the end or before an exec.
_HOOK = """
import sys
def install(fd):
    import json, os
    seen, paths, imports, names = [], [], [], ("socket.", "subprocess.", "os.fork", "os.posix_spawn", "_thread.start")
    def hand_over():
        done = json.dumps({"seen": seen, "paths": paths, "imports": sorted(set(imports)),
                           "modules": sorted(sys.modules)}).encode()
        while done:
            done = done[os.write(fd, done):]
    is_busy = []
    def hook(event, arguments):
        if is_busy:
            return
        if event == "import":
            imports.append(arguments[0])
        elif event == "open":
            is_busy.append(1)
            paths.append([str(arguments[0]), str(arguments[1]), arguments[2]])
            is_busy.pop()
        elif event == "os.exec":
            is_busy.append(1)
            hand_over()
            is_busy.pop()
        elif event.startswith(names):
            seen.append(event)
    sys.addaudithook(hook)
    return hand_over
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """A finished interpreter, and the audit events that it raised."""

    finished: "subprocess.CompletedProcess[str]"
    seen: Sequence[str]
    paths: Sequence[tuple[str, str, int]]
    imports: Sequence[str]
    modules: Sequence[str]

    def files(self) -> list[str]:
        """Returns every opened file that is not the interpreter's, and every file opened for writing."""
        flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        return [
            path
            for path, _, opened_with in self.paths
            if (isinstance(opened_with, int) and opened_with & flags) or not is_interpreters(path)
        ]

    def loaded(self, package: str) -> list[str]:
        """Returns the modules of *package* that were searched for or loaded."""
        return [name for name in (*self.imports, *self.modules) if name.partition(".")[0] == package]


def audit(script: str, environ: Mapping[str, str], *arguments: str, **options: Any) -> Audit:
    """Runs *script* in an interpreter with an audit hook, under *environ*, to its end or its exec."""
    reader, writer = os.pipe()
    source = f"{_HOOK}\n_hand_over = install({writer})\n{script}\n_hand_over()"
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", source, *arguments],
            **{"env": environ, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
            pass_fds=(writer,),
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as file:
        try:
            handed = file.read()
        except BaseException:
            process.kill()
            process.communicate()
            raise
    out, err = process.communicate(timeout=120)
    finished = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if not handed:
        raise AssertionError(f"the interpreter ended early: {err}")
    events, _ = json.JSONDecoder().raw_decode(handed)
    return Audit(finished, events["seen"], events["paths"], events["imports"], events["modules"])
