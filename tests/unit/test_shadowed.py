"""A name that a package imports must not be that of one of its modules: importing the module would replace it."""

from __future__ import annotations

import ast

from edgekit.core.root import PACKAGE


def test_no_package_imports_a_name_that_one_of_its_modules_has() -> None:
    shadowed = []
    for init in sorted(PACKAGE.rglob("__init__.py")):
        modules = {p.stem for p in init.parent.glob("*.py")} | {
            p.parent.name for p in init.parent.glob("*/__init__.py")
        }
        package = ".".join(init.parent.relative_to(PACKAGE.parent).parts)
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != package:
                # A function out of the module of its own name is bound after that module was imported, and stays.
                names = {a.asname or a.name for a in node.names} - {str(node.module).rpartition(".")[2]}
                shadowed += [f"{package}: {name}" for name in names & modules]
    assert not shadowed
