"""Checks which folder or module may import which, which import OpenTelemetry, and which stay light."""

import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tools.imports import find_circle, list_modules, read_graph, read_imports, to_levels

MODULES = list_modules()
GRAPH = read_graph()
MAX_LEVEL = 6  # seven levels

VALUES = {"consent", "settings", "event", "outcome", "errors", "_version"}
FOLDERS = ("tbot", "otlp", "relay", "bridge", "exporters", "cli")

# What each folder, or each module at the top, may import outside itself, also inside a function.
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
MAY_IMPORT_OPENTELEMETRY = {"otlp", "exporters", "bridge"}

# The start path of tbot: modules that the interpreter has loaded anyway, or that are imported only with telemetry on.
START_PATH = {
    "": {"importlib"},
    "__main__": {"sys", "_signal"},
    "consent": {"os"},
    "settings": {"urllib"},
    "launcher": {"os", "sys", "_socket", "_signal"},
}


def folder_of(module):
    """Returns the folder of *module*, or the name of a module at the top."""
    folder = module.partition(".")[0]
    return folder if folder in FOLDERS else module


def test_the_table_has_a_row_for_each_folder_and_no_other():
    """A new folder, or a new module at the top, needs a row."""
    assert sorted(ALLOWED) == sorted({folder_of(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module):
    """No import runs upward."""
    folder = folder_of(module)

    assert not {folder_of(imported) for imported in GRAPH[module]} - ALLOWED[folder] - {folder}


def test_the_imports_have_no_circle_and_few_levels():
    """Each module can be read after those that it imports, and the longest chain of imports is short."""
    assert [] == find_circle(GRAPH)
    assert max(to_levels(GRAPH).values()) <= MAX_LEVEL


@pytest.mark.parametrize("module", MODULES)
def test_only_some_folders_import_opentelemetry(module):
    """Only the code that makes requests and records, and the bridge's metrics, import OpenTelemetry and gRPC."""
    _, others = read_imports(MODULES[module])

    assert not {"opentelemetry", "grpc", "requests"} & others or folder_of(module) in MAY_IMPORT_OPENTELEMETRY


@pytest.mark.parametrize(("module", "allowed"), START_PATH.items())
def test_the_start_path_imports_almost_nothing(module, allowed):
    """Code that runs before tbot imports only loaded modules, or modules that telemetry needs if it is on."""
    _, others = read_imports(MODULES[module])

    assert not others - allowed


def test_only_the_entry_point_imports_the_command_line():
    """Outside its folder, only `python -m otel_tbot` imports the command line."""
    importers = {module for module, imports in GRAPH.items() if "cli" in {folder_of(name) for name in imports}}

    assert {"__main__"} == {module for module in importers if folder_of(module) != "cli"}


def test_nothing_names_a_machine_or_a_registry():
    """No tracked file contains a path of a machine or the address of a package registry."""
    suspicious = ("/" + "root/", "/" + "home/", "/" + "work/", "pypi" + ".org/simple", "files.python" + "hosted")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).exists()]

    def read(path: Path) -> str:
        return path.read_text(errors="replace")

    assert len(files) > len(MODULES)
    assert not [(path.name, text) for path in files for text in suspicious if text in read(path)]
