"""Relays started by each kind of launcher, and the probe: imports never come from the working directory."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import otel_tbot
from tests.relay.test_server import BASIC, PATIENT, Command, endpoint, one_shot
from tests.support.checkout import ROOT, skip_or_fail
from tests.support.processes import CONSENT, Launch
from tests.support.servers import OtlpHttpServer

SITE = sysconfig.get_path("purelib")
PACKAGE_PARENT = Path(otel_tbot.__file__).parent.parent
PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))
"""The interpreter of the virtual environment, which has no packages itself."""

MAIN = "from otel_tbot.__main__ import main\nmain()\n"


def make_script(folder: Path) -> list[str]:
    """A script that builds sys.path, as PEX, Bazel and Nix do, run by an interpreter that has no packages."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path[1:1] = [{str(PACKAGE_PARENT)!r}, {SITE!r}]\n{MAIN}")
    return [PYTHON, "-I", str(script)]


def make_long_script(folder: Path) -> list[str]:
    """The same with a path of 300 KB in 2,000 entries."""
    script = folder / "script.py"
    missing = "['/nonexistent/' + 'x' * 130 + str(n) for n in range(2000)]"
    script.write_text(f"import sys\nsys.path[1:1] = {missing} + [{str(PACKAGE_PARENT)!r}, {SITE!r}]\n{MAIN}")
    return [PYTHON, "-I", str(script)]


def make_relative_script(folder: Path) -> list[str]:
    """The same with entries that are relative to the working directory, and one with a line break and a colon."""
    link = folder / "a:b\nc"
    link.symlink_to(SITE)
    (folder / "package").symlink_to(PACKAGE_PARENT)
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path[1:1] = ['package', {link.name!r}]\n{MAIN}")
    return [PYTHON, "-I", str(script)]


def make_archive(folder: Path) -> list[str]:
    """A zipapp with this package inside, named by a relative path."""
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        for path in (PACKAGE_PARENT / "otel_tbot").rglob("*.py"):
            archive.write(path, path.relative_to(PACKAGE_PARENT))
        archive.writestr("__main__.py", f"import sys\nsys.path.insert(1, {SITE!r})\n{MAIN}")
    return [PYTHON, "-I", "app.pyz"]


def make_pythonpath(_folder: Path) -> list[str]:
    """An interpreter that has no packages, with PYTHONPATH."""
    return ["env", f"PYTHONPATH={PACKAGE_PARENT}:{SITE}", PYTHON, "-m", "otel_tbot"]


def make_module(_folder: Path) -> list[str]:
    """`python -m`, which puts the working directory first."""
    return [sys.executable, "-m", "otel_tbot"]


def make_pythonhome(_folder: Path) -> list[str]:
    """An interpreter that is told where its library is."""
    return [
        "env",
        f"PYTHONHOME={sys.base_prefix}",
        f"PYTHONPATH={PACKAGE_PARENT}:{SITE}",
        PYTHON,
        "-m",
        "otel_tbot",
    ]


def make_ignored_pythonhome(_folder: Path) -> list[str]:
    """An interpreter that ignores the home of another one, which is not there."""
    return ["env", "PYTHONHOME=/nonexistent", sys.executable, "-I", "-m", "otel_tbot"]


def make_no_bytecode(_folder: Path) -> list[str]:
    """An interpreter that writes no bytecode and looks for it elsewhere."""
    return [sys.executable, "-B", "-X", "pycache_prefix=/nonexistent", "-P", "-m", "otel_tbot"]


def report_behind(launcher: list[str], folder: Path, environ: dict[str, str]) -> tuple[int, str]:
    """Returns the response to a report behind *launcher*, started in *folder*; fails if stderr is not empty."""
    launch = Launch(BASIC | CONSENT | PATIENT | environ, is_measured=False)
    script = ["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS; exec cat"]
    process = launch.start(script, launcher=(*launcher, "run", "--"), cwd=folder)
    command = Command.__new__(Command)
    command.address = process.stdout.readline().strip()
    response = command.report(one_shot())
    _, err = process.communicate("")
    launch.wait_for_end()

    assert "" == err
    return response


LAUNCHERS = [
    make_script, make_long_script, make_relative_script, make_archive, make_pythonpath, make_module, make_pythonhome,
    make_ignored_pythonhome, make_no_bytecode,
]  # fmt: skip


@pytest.mark.parametrize("make", LAUNCHERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_the_relay_runs_wherever_the_launcher_runs(make, tmp_path):
    """However sys.path was built, the event arrives, and nothing is imported from the working directory."""
    launcher = make(tmp_path)
    for name in ("socket", "select", "httptools", "google", "opentelemetry", "hmac", "zlib"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('canary')\n")
    with OtlpHttpServer() as server:
        assert (200, "") == report_behind(launcher, tmp_path, endpoint(server.url))
        assert 1 == len(server.requests)


@pytest.mark.parametrize(
    "environ",
    [
        {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp"},
        {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "canary"},
        {"PYTHONSTARTUP": "/nonexistent", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii", "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDEVMODE": "1"},
    ],
)
def test_variables_of_python_and_protobuf_do_not_matter(environ, tmp_path):
    """They are for other programs, or would change what the relay imports."""
    with OtlpHttpServer() as server:
        assert (200, "") == report_behind(
            [sys.executable, "-P", "-m", "otel_tbot"], tmp_path, environ | endpoint(server.url)
        )


OLD_PROTOBUF = {
    "google/__init__.py": "",
    "google/protobuf/__init__.py": "__version__ = '3.0.0'\n",
}


def test_an_older_protobuf_in_front_is_what_the_report_gets(tmp_path):
    """The relay imports what the launcher would import. If that cannot work, tbot's log says so."""
    for name, text in OLD_PROTOBUF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    reason = probe_relay_in({"PYTHONPATH": str(tmp_path)})

    assert "the relay cannot load what it needs: ModuleNotFoundError in google.protobuf.descriptor" == reason or (
        reason.startswith("the relay cannot load what it needs: ImportError in google.protobuf")
    )


def probe_relay_in(environ: dict[str, str]) -> str:
    """Returns what the probe says in a new interpreter."""
    script = "import os; from otel_tbot.relay.probe import probe_relay; print(probe_relay(os.environ))"
    finished = subprocess.run(
        [sys.executable, "-P", "-c", script], env=BASIC | environ, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_probe_measures_a_relay_and_leaves_nothing(protocol):
    """The probe starts a real relay, sends nothing, and the relay ends."""
    with OtlpHttpServer() as server:
        seconds = probe_relay_in(endpoint(server.url) | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})

        assert 0 < float(seconds) < 60
        assert not server.requests


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (endpoint("canary canary"), "there is no valid endpoint; run `otel-tbot doctor`"),
        (
            {"PYTHONPATH": str(ROOT / "tests" / "support" / "broken")},
            "the relay cannot load what it needs: RuntimeError in httptools",
        ),
    ],
)
def test_a_probe_says_why_there_is_no_relay(environ, reason):
    """The reason is the one that `run` or tbot's log would show."""
    assert reason == probe_relay_in(environ)


def test_the_relay_needs_neither_proc_nor_dev_fd(tmp_path):
    """Even if /proc is empty, and /dev/fd with it, the event arrives."""
    front = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    tried = subprocess.run([*front, "test", "!", "-e", "/dev/fd"], capture_output=True, check=False)
    if tried.returncode:
        skip_or_fail("this needs a mount namespace, which takes root")
    with OtlpHttpServer() as server:
        launcher = [*front, sys.executable, "-P", "-m", "otel_tbot"]
        assert (200, "") == report_behind(launcher, tmp_path, endpoint(server.url))
        assert 1 == len(server.requests)
