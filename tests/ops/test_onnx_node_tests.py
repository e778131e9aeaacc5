"""ONNX's node tests against the recorded outcomes (tests/ops/node_tests.json).

A case that passed must pass; what is refused must be refused for the recorded reason. A change for the better is
recorded with ``python tools/node_tests.py run --write``. The quick selection takes one case of every operator.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
RATE = 0.95


@functools.cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("node_tests", TOOLS / "node_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["node_tests"] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def cases() -> dict[str, Any]:
    pytest.importorskip("ai_edge_litert", reason="the LiteRT runtime is not installed (extra tflite)")
    table: dict[str, Any] = tool().cases()
    return table


def differences(names: list[str]) -> list[str]:
    recorded, found = tool().read_matrix(), tool().run_all(names)
    pairs = [(n, (found[n].status, found[n].reason), (recorded[n].status, recorded[n].reason)) for n in names]
    return [f"{name}: {now}, recorded {before}" for name, now, before in pairs if now != before]


def test_every_case_is_recorded() -> None:
    assert set(tool().read_matrix()) == set(cases())


def test_rate_and_reasons() -> None:
    recorded = tool().read_matrix()
    possible = [o for o in recorded.values() if o.status != "impossible"]
    assert sum(o.status == "pass" for o in possible) >= RATE * len(possible)
    assert not [n for n, o in recorded.items() if o.status != "pass" and not o.reason]
    assert not [n for n, o in recorded.items() if o.status in ("crash", "error")]


def test_one_case_of_every_operator() -> None:
    chosen: dict[str, str] = {}
    for name, case in cases().items():
        chosen.setdefault(tool().operator(case) or name, name)
    single = [name for operator, name in chosen.items() if operator != name]
    assert len(single) > 150
    assert differences(single) == []


@pytest.mark.slow
def test_all() -> None:
    assert differences(list(cases())) == []


def test_the_page_is_current() -> None:
    sys.path.insert(0, str(TOOLS))
    try:
        from node_tests_table import page
    finally:
        sys.path.remove(str(TOOLS))
    assert tool().TABLE.read_text(encoding="utf-8") == page(cases(), tool().read_matrix())
