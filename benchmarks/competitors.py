"""What is measured beside ours, and the ways that ours is installed: built or installed on the first use."""

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
    """Builds otel-cli, and the wheel; installs that by pip and by uv, each in an environment of its own."""
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
            # What it depends on is that of the checkout.
            inside = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "dependencies.pth"
            inside.write_text(sysconfig.get_path("purelib") + "\n")
        python = folder / "bin" / "python"
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--force-reinstall"]
        if installer == "uv":
            install = [BIN / "uv", "pip", "install", "--offline", "--reinstall", "--python", python]
        subprocess.run([*install, "--quiet", "--no-deps", wheel], check=True)
        # Both write bytecode, or neither: a first start that compiles is another figure.
        subprocess.run([python, "-m", "compileall", "-q", folder / "lib"], check=False)


def environment(installer: str) -> Path:
    """The virtual environment in which *installer* ("pip" or "uv") put the wheel."""
    return BUILD / installer


def describe_machine() -> list[str]:
    """Machine, versions and commit, a line each; nothing that names the machine."""
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
