"""The tables in README.md are what the catalogue says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "docs_tables.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_current(tool: ModuleType) -> None:
    assert tool.stale() == [], "run make docs"


def test_a_changed_table_is_stale(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "TABLES", {"README.md": {"targets": lambda: "| nothing |"}})
    assert tool.stale() == ["README.md"]


def test_text_outside_the_markers_is_kept(tool: ModuleType) -> None:
    text = "a\n<!-- begin t -->\nold\n<!-- end t -->\nb\n"
    assert tool.rendered(text, {"t": lambda: "new"}) == "a\n<!-- begin t -->\nnew\n<!-- end t -->\nb\n"


def test_a_missing_marker_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="markers"):
        tool.rendered("nothing here", {"t": lambda: "new"})
