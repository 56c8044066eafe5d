"""Reads which module of the package imports which, and prints the levels: `python -m tools.imports`.

A module is one level above the highest module that it imports; without such an import it is on level 0.
Imports inside functions count, and imports for type checkers do not.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools import ROOT

PACKAGE: Final = ROOT / "otel_tbot"


def list_modules() -> dict[str, Path]:
    """Returns the file of each module, by its name below `otel_tbot` ("" is the package), without generated code."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts[:2] != ["tbot", "prehog"]:
            names[".".join(parts)] = path
    return names


def read_imports(path: Path) -> tuple[set[str], set[str]]:
    """Returns what *path* imports: our modules, by their names below `otel_tbot`, and other packages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    ours: set[str] = set()
    others: set[str] = set()
    modules = list_modules()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package, _, rest = (node.module or "").partition(".")
            if package != "otel_tbot":
                others.add(package)
                continue
            for alias in node.names:
                name = f"{rest}.{alias.name}".lstrip(".")
                ours.add(name if name in modules else "_version" if name == "__version__" else rest)
    return ours, others


def read_graph() -> dict[str, set[str]]:
    """Returns our modules that each of our modules imports, without generated code."""
    modules = list_modules()
    return {name: read_imports(path)[0] & modules.keys() - {name} for name, path in modules.items()}


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the modules of one circle of imports, or [] without a circle. Pure."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            if circle := visit(imported, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def to_levels(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Returns the level of each module; *graph* must not have a circle. Pure."""
    levels: dict[str, int] = {}

    def level_of(module: str) -> int:
        if module not in levels:
            levels[module] = max((level_of(imported) + 1 for imported in graph[module]), default=0)
        return levels[module]

    for module in graph:
        level_of(module)
    return levels


def main() -> int:
    """Prints the table of levels; returns 1 if there is a circle, otherwise 0."""
    graph = read_graph()
    if circle := find_circle(graph):
        print("circle: " + " -> ".join([*circle, circle[0]]))
        return 1
    levels = to_levels(graph)
    for level in range(max(levels.values()) + 1):
        for module in sorted(name for name, at in levels.items() if at == level):
            imported = ", ".join(sorted(name or "__init__" for name in graph[module]))
            print(f"{level}  {module or '__init__':<24} {imported}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
