"""Builds and installs the programs that ours is compared with, and ours in each way that users install it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from benchmarks.processes import BIN, ROOT

BUILD: Final = ROOT / "build" / "bench"
OTEL_CLI: Final = BUILD / "otel-cli"
OTEL_CLI_VERSION: Final = "0.4.5"

_NAMED: Final = (
    *("opentelemetry-sdk", "opentelemetry-exporter-otlp", "protobuf", "grpcio", "httptools", "uvicorn"),
    *("connectrpc", "granian", "uvloop", "uv"),
)


def build() -> None:
    """Builds otel-cli and the wheel, and installs the wheel by pip and by uv into separate environments."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not OTEL_CLI.exists():
        command = ["go", "build", "-mod=mod", "-o", OTEL_CLI, "github.com/equinix-labs/otel-cli"]
        subprocess.run(command, cwd=ROOT / "go" / "otel-cli", check=True)
    for old in BUILD.glob("*.whl"):
        old.unlink()
    subprocess.run(
        [BIN / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", BUILD, ROOT],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (wheel,) = BUILD.glob("*.whl")
    for installer in ("pip", "uv"):
        folder = environment(installer)
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            # Its dependencies are those of the checkout's environment.
            inside = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "dependencies.pth"
            inside.write_text(sysconfig.get_path("purelib") + "\n")
        python = folder / "bin" / "python"
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--force-reinstall"]
        if installer == "uv":
            install = [BIN / "uv", "pip", "install", "--offline", "--reinstall", "--python", python]
        subprocess.run([*install, "--quiet", "--no-deps", wheel], check=True)
        # A first start that compiles bytecode is another figure.
        subprocess.run([python, "-m", "compileall", "-q", folder / "lib"], check=False)


def environment(installer: str) -> Path:
    """Returns the virtual environment into which *installer* ("pip" or "uv") installed the wheel."""
    return BUILD / installer


def describe_machine() -> list[str]:
    """Returns a line each for the machine, versions and commit, without a name of the machine."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024**2
    go = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _NAMED)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "otel_tbot", "scripts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    system = f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"
    busy = f"load before the run {os.getloadavg()[0]:.1f}"
    return [
        f"- Machine: {len(model)} cores, {model[0] if model else platform.machine()}, {memory} GiB, {system}; {busy}.",
        f"- CPython {platform.python_version()}, {go}, OpenTelemetry Collector 0.161.0, otel-cli {OTEL_CLI_VERSION}.",
        f"- {versions}.",
        f"- Commit {commit.stdout.strip() or 'unknown'}{', with changes on top' if changed.stdout.strip() else ''}.",
    ]
