"""The table of DESIGN.md: which room may import which, what knows OpenTelemetry, and what stays light."""

import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tools.imports import find_circle, list_modules, read_graph, read_imports, to_levels

MODULES = list_modules()
GRAPH = read_graph()
MAX_LEVEL = 6  # seven levels

VALUES = {"consent", "settings", "event", "outcome", "errors", "_version"}
ROOMS = ("tbot", "otlp", "relay", "bridge", "exporters", "cli")

# What each room, or each module at the top, may import outside itself, at its top or inside a function.
ALLOWED = {
    "": {"_version", "consent", "delivery", "errors", "event", "exporters", "outcome"},
    "__main__": {"cli", "launcher"},
    "_version": set(),
    "consent": set(),
    "settings": set(),
    "outcome": set(),
    "errors": set(),
    "event": {"errors"},
    "launcher": {"consent", "settings"},
    "tbot": VALUES,
    "otlp": VALUES,
    "delivery": VALUES | {"otlp"},
    "relay": VALUES | {"delivery", "launcher", "tbot"},
    "bridge": VALUES | {"delivery", "tbot"},
    "exporters": VALUES | {"otlp"},
    "cli": VALUES | {"bridge", "delivery", "exporters", "launcher", "otlp", "relay", "tbot"},
}

# The folders that may import OpenTelemetry, gRPC or a server; a module at the top never does.
KNOW_OPENTELEMETRY = {"otlp", "exporters", "bridge"}

# On tbot's start path: what the interpreter has loaded, and what only telemetry that is on needs.
START_PATH = {
    "": {"importlib"},
    "__main__": {"sys", "_signal"},
    "consent": {"os"},
    "settings": {"urllib"},
    "launcher": {"os", "sys", "_socket", "_signal"},
}


def room_of(module):
    """The folder that *module* is in, or its own name at the top."""
    room = module.partition(".")[0]
    return room if room in ROOMS else module


def test_the_table_names_every_room_and_no_other():
    """A new module at the top, or a new folder, gets a row."""
    assert sorted(ALLOWED) == sorted({room_of(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_rooms_that_the_table_allows(module):
    """No import runs upward."""
    room = room_of(module)

    assert not {room_of(imported) for imported in GRAPH[module]} - ALLOWED[room] - {room}


def test_the_imports_have_no_circle_and_few_levels():
    """Each module can be read after those that it imports, and the longest way is short."""
    assert [] == find_circle(GRAPH)
    assert max(to_levels(GRAPH).values()) <= MAX_LEVEL


@pytest.mark.parametrize("module", MODULES)
def test_only_some_rooms_know_opentelemetry(module):
    """OpenTelemetry and gRPC are imported where requests and records are made, and for the bridge's own metrics."""
    _, others = read_imports(MODULES[module])

    assert not {"opentelemetry", "grpc", "requests"} & others or room_of(module) in KNOW_OPENTELEMETRY


@pytest.mark.parametrize(("module", "allowed"), START_PATH.items())
def test_the_start_path_imports_almost_nothing(module, allowed):
    """What runs before tbot imports only what the interpreter has loaded, or what telemetry that is on needs."""
    _, others = read_imports(MODULES[module])

    assert not others - allowed


def test_only_the_entry_point_imports_the_command_line():
    """The command line is at the end: outside its folder only `python -m otel_tbot` imports it."""
    importers = {module for module, imports in GRAPH.items() if "cli" in {room_of(name) for name in imports}}

    assert {"__main__"} == {module for module in importers if room_of(module) != "cli"}


def test_nothing_names_a_machine_or_a_registry():
    """No tracked file holds a path of a machine or a package registry's address."""
    suspicious = ("/" + "root/", "/" + "home/", "/" + "work/", "pypi" + ".org/simple", "files.python" + "hosted")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).exists()]

    def read(path: Path) -> str:
        return path.read_text(errors="replace")

    assert len(files) > len(MODULES)
    assert not [(path.name, text) for path in files for text in suspicious if text in read(path)]
