"""The house: its rooms and their descriptions, no import circle, and ceilings. Reads the files, imports none."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "edgekit"
ROOMS = 17
ROOT_FILES = {"__init__.py", "__main__.py", "errors.py", "plugins.py", "types.py"}
SENTENCES = 3

# Ceilings: they only ever come down. What was measured last, rounded up.
LOCAL_IMPORTS = 300
"""Imports inside functions: of torch, onnx and the runtimes where start-up time needs it, and of extras."""
ANY_PER_1000_LINES = 9.5
BROAD_EXCEPTS = 38
"""``except Exception``, ``except BaseException`` and bare ones."""


@cache
def trees() -> Mapping[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def folders() -> list[Path]:
    return sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """The package's modules that ``module`` imports anywhere: at the top, in functions, for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            target = name if name in trees() else name.rpartition(".")[0]
            if target in trees() and target != module:
                yield target


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            position = stack.index(name)
            component = stack[position:]
            del stack[position:]
            if len(component) > 1:
                found.append(sorted(component))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for name in graph:
            if name not in index:
                visit(name)
    finally:
        sys.setrecursionlimit(limit)
    return found


def nodes_in_functions(tree: ast.AST) -> set[ast.AST]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {inner for function in functions for inner in ast.walk(function)}


def test_the_root_holds_rooms_and_five_files() -> None:
    rooms = {folder.relative_to(PACKAGE).parts[0] for folder in folders()}
    assert len(rooms) <= ROOMS, sorted(rooms)
    assert {path.name for path in PACKAGE.glob("*.py")} == ROOT_FILES


@pytest.mark.parametrize("folder", folders(), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    name = ".".join(folder.relative_to(PACKAGE.parent).parts)
    assert name in trees(), f"{folder} has no __init__.py"
    text = ast.get_docstring(trees()[name]) or ""
    assert "placeholder" not in text.lower()
    count = len(re.findall(r"[.!?](?=\s|$)", text))
    assert count >= SENTENCES, f"{name}: {count} sentences; say what it is for, what comes in, what goes out"


def test_no_module_imports_itself_in_a_circle() -> None:
    # The face of the package names its public objects for type checkers; nothing inside may import from it.
    graph = {m: set(imported(m, tree)) - {"edgekit"} for m, tree in trees().items() if m != "edgekit"}
    assert sum(map(len, graph.values())) > 1000, "the imports were not found"
    assert not circles(graph)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_nothing_below_the_command_line_imports_the_public_face() -> None:
    names = (
        "edgekit.__version__",
        "edgekit.build",
        "edgekit.predict",
        "edgekit.Artifact",
        "edgekit.TorchModel",
    )
    for module, tree in trees().items():
        if module.startswith("edgekit.cli"):  # made of the public functions
            continue
        wholes = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        froms = [
            f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names
        ]
        assert "edgekit" not in wholes, module
        assert not set(names) & set(froms), module


def test_imports_inside_functions_stay_few() -> None:
    count = sum(
        isinstance(node, ast.Import | ast.ImportFrom)
        for tree in trees().values()
        for node in nodes_in_functions(tree)
    )
    assert 0 < count <= LOCAL_IMPORTS, f"{count}: import at the top of a heavy module instead"


def test_any_stays_rare() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    lines = sum(text.count("\n") for text in texts)
    found = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
    assert 0 < 1000 * found / lines <= ANY_PER_1000_LINES, (
        f"{found} in {lines} lines: name the type, or object"
    )


def test_broad_excepts_stay_rare() -> None:
    broad = {None, "Exception", "BaseException"}
    count = sum(
        isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in broad))
        for tree in trees().values()
        for node in ast.walk(tree)
    )
    assert 0 < count <= BROAD_EXCEPTS, f"{count}: name what can come"


def test_no_package_calls_something_by_the_name_of_a_module_of_its_own() -> None:
    """Whoever imports the submodule puts it in the place of what ``__init__`` called so: ``versions`` of another room
    was the backend's own ``versions`` once something was lowered."""
    for folder in folders():
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        own = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}
        package = ".".join(folder.relative_to(PACKAGE.parent).parts)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(package):
                taken = {alias.asname or alias.name for alias in node.names} & own
                assert not taken, f"{package} imports {taken} from {node.module}"
