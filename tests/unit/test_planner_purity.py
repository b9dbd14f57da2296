"""The planner is pure: numpy is its only dependency, and it knows no file, process or clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pageferry_planner

HOME = Path(pageferry_planner.__file__).parent
MODULES = sorted(HOME.glob("*.py"))
PURE = {"__future__", "collections", "dataclasses", "enum", "fnmatch", "functools", "itertools", "math", "typing"}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
PROGRAM = """
import importlib, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module("pageferry_planner." + name)
for name, module in sorted(sys.modules.items()):
    if name not in before and "." not in name and "site-packages" in (getattr(module, "__file__", None) or ""):
        print(name)
print(*(name for name in sys.modules if name.split(".")[0] == "pageferry"))
"""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_numpy_pure_library_and_its_neighbours_only(path: Path) -> None:
    imported: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            imported |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0
            imported.add(statement.module or "")
    assert {name.split(".")[0] for name in imported} <= PURE | {"numpy", "pageferry_planner"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_calls_nothing_that_reads_writes_or_runs(path: Path) -> None:
    called = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    numpy = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not called & IMPURE_CALLS
    assert not numpy & {"fromfile", "tofile", "memmap", "load", "save", "loadtxt", "savetxt", "genfromtxt", "random"}


def test_importing_all_of_the_planner_loads_numpy_and_nothing_else_that_was_installed() -> None:
    command = [sys.executable, "-c", PROGRAM, *(path.stem for path in MODULES if path.stem != "__init__")]
    environment = {"PYTHONPATH": str(HOME.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numpy"]
