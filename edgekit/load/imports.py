"""The user's own modules: what they import, and which of them one can reach from another.

A module stays in ``sys.modules`` after it was imported, with all that it read. Whoever wants to know what a
callable's result depends on has to ask which modules it can reach, not which were imported just now.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType

from edgekit.core.literal import parse
from edgekit.core.root import PACKAGE

_DYNAMIC = frozenset(
    {"import_module", "__import__", "exec", "eval", "resolve_name", "run_path", "run_module"}
)
"""Names by which code imports or runs what its source does not say."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was compiled for a module. ``imports`` are the names that it imports anywhere; ``dynamic``: others too."""

    path: str
    sha256: str
    imports: frozenset[str] = frozenset()
    dynamic: bool = False


sources: dict[str, Source] = {}
"""The user's modules that were imported while somebody looked, by name."""


@functools.cache
def installed_roots() -> tuple[str, ...]:
    """The folders of what is installed, edgekit among it: known by names and versions, not file by file."""
    roots = {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages(), str(PACKAGE)}
    return tuple(sorted({form + os.sep for r in roots if r for form in (r, os.path.realpath(r))}))


@functools.lru_cache(maxsize=1 << 16)
def is_users(path: str) -> bool:
    """Whether a file is the user's own: neither installed, nor edgekit's, nor without a file at all."""
    if not path or path.startswith("<"):
        return False
    return not path.startswith(installed_roots()) and not os.path.realpath(path).startswith(installed_roots())


def describe(name: str, path: str, data: bytes, *, package: bool) -> tuple[Source, ast.Module]:
    """A module's source, and the tree to compile."""
    tree = parse(data, path)
    inside = name if package else name.rpartition(".")[0]
    source = Source(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        imports=frozenset(_imports(tree, inside)),
        dynamic=any(_is_dynamic(node) for node in ast.walk(tree)),
    )
    return source, tree


def reach(roots: Iterable[str]) -> set[str]:
    """The user's modules that code in ``roots`` can reach: by what it imports, and by what it already holds.

    All that are there, where some of that code imports by names that are made at run time.
    """
    reached: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        if name in sources and sources[name].dynamic:
            todo += sources
        todo += _neighbours(name)
    return reached


def _neighbours(name: str) -> Iterator[str]:
    module = sys.modules.get(name)
    held = vars(module).values() if isinstance(module, ModuleType) else ()
    named = {_home(value) for value in tuple(held)}
    if name in sources:
        named |= sources[name].imports
    for other in named | {name.rpartition(".")[0]}:
        if other in sources or is_users(file_of(other)):
            yield other


def _home(value: object) -> str:
    """The module that a value comes from. No attribute of user-made instances is asked for: that may run code."""
    if isinstance(value, ModuleType):
        return value.__name__
    owner = value if isinstance(value, FunctionType | type) else type(value)
    home = owner.__module__
    return home if isinstance(home, str) else ""


def file_of(name: str) -> str:
    """The file of an imported module; empty where there is none."""
    file = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")  # getattr may wake a lazy module
    return file if isinstance(file, str) else ""


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The absolute names that are imported; of ``from a import b`` both ``a`` and ``a.b``, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            yield from _with_parents(base)
            for alias in node.names:
                yield f"{base}.{alias.name}"


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _is_dynamic(node: ast.AST) -> bool:
    """Whether this may import what no import statement says: a call of ``exec``, ``sys.modules[…]`` …"""
    if isinstance(node, ast.Name):
        return node.id in _DYNAMIC
    if isinstance(node, ast.Attribute):
        if node.attr == "modules":
            return isinstance(node.value, ast.Name) and node.value.id == "sys"
        return node.attr in _DYNAMIC - {"eval", "exec"}  # model.eval() is no import
    return False
