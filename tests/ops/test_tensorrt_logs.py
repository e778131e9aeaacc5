"""What the device's builder makes of messages that a real TensorRT prints: that of TensorRT for RTX, which builds here.

It says the same through the same interfaces as TensorRT, whose ``trtexec`` writes each message as a line.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from backend_models import conv_net, quantized, unsupported
from onnx import TensorProto, helper

from edgekit.backends.nvidia import tensorrt_rtx
from edgekit.core import plugins
from edgekit.devices.agent import failure

pytestmark = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
NAME = "tensorrt_rtx"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``runner_build.py`` as the agent imports it."""
    agent, backend = types.ModuleType("agent"), types.ModuleType("agent.backend")
    place = Path(plugins.runner("tensorrt_rtx")).parent
    agent.__path__, backend.NAME = [str(place)], NAME  # type: ignore[attr-defined]
    for name, module in (("agent", agent), ("agent.backend", backend), ("agent.failure", failure)):
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("agent.runner_build")
    for name in ("runner", "runner_key", "runner_build"):
        sys.modules.pop(f"agent.{name}", None)


@dataclass
class Way:
    """What is told while it builds."""

    phases: list[str] = field(default_factory=list)
    percents: list[int] = field(default_factory=list)


def build(builds: Any, model: Path, folder: Path, **more: Any) -> tuple[dict[str, Any], list[str], Way]:
    """The answer, the log's lines, and the way."""
    spec = {"onnx": str(model), "folder": str(folder), "via": "", "typing": "strong", "precisions": []}
    spec |= {"profiles": {}, "dla": -1, "timing_cache": None, "workspace": 1 << 28, "trtexec": [], **more}
    host = {"via": ["python"], "free_memory": 1 << 30, "tensorrt": "0"}
    way = Way()
    answer = builds.build(spec, host, way.phases.append, way.percents.append)
    return answer, (folder / builds.LOG).read_text().splitlines(), way


def test_an_engine_with_its_log_and_progress(
    builds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "_PAUSE_S", 0.0)
    conv_net(tmp_path / "m.onnx")
    answer, lines, way = build(builds, tmp_path / "m.onnx", tmp_path / "out")
    assert (answer["refused"], answer["failure"]) == ([], "")
    assert answer["size"] == (tmp_path / "out" / builds.ENGINE).stat().st_size > 10_000
    assert {builds.ENGINE, builds.LOG} <= set(answer["files"])
    assert all(line[:4] in ("[I] ", "[W] ", "[E] ") for line in lines)
    assert way.phases[:2] == ["parse", "build"]
    assert len(way.phases) > 3  # those that the builder names
    assert way.percents == sorted(set(way.percents))
    assert way.percents[-1] == 100


@pytest.mark.parametrize("kind", ["unknown", "zero point"])
def test_a_node_that_the_parser_refuses(builds: Any, tmp_path: Path, kind: str) -> None:
    """The same node by the parser's own record of it and by what it prints, which is all that trtexec gives."""
    if kind == "unknown":
        unsupported(tmp_path / "m.onnx")
    else:
        quantized(conv_net(tmp_path / "f.onnx"), tmp_path / "m.onnx", activation="uint8")
    answer, lines, _ = build(builds, tmp_path / "m.onnx", tmp_path / "out")
    assert answer["failure"] == ""
    assert answer["refused"]
    assert not (tmp_path / "out" / builds.ENGINE).exists()
    found = builds._refusals("\n".join(_messages(builds, lines)))
    assert [(r["node"], r["op"]) for r in found] == [(r["node"], r["op"]) for r in answer["refused"]]
    for row in found:
        assert row["message"]
        assert not row["message"].startswith("Invalid Node")


def test_a_node_that_the_parser_throws_at(builds: Any, tmp_path: Path) -> None:
    """Its own record names none, and what it says before it reads one does."""
    scatter = helper.make_node("ScatterElements", ["a", "i", "u"], ["y"], name="scatter", reduction="add")
    kinds = {"x": TensorProto.FLOAT, "i": TensorProto.INT64, "u": TensorProto.FLOAT}
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"], name="relu"), scatter],
        "g",
        [helper.make_tensor_value_info(n, kind, [3, 4]) for n, kind in kinds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
    )
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), tmp_path / "m.onnx")
    answer, _, _ = build(builds, tmp_path / "m.onnx", tmp_path / "out")
    assert [(r["node"], r["op"]) for r in answer["refused"]] == [("scatter", "ScatterElements")]


def _messages(builds: Any, lines: list[str]) -> list[str]:
    """As they are read from trtexec, which puts a time before the first line of each message."""
    marked = ("[I] ", "[W] ", "[E] ")
    printed = [f"[12/01/2026-10:00:00] {line}" if line.startswith(marked) else line for line in lines]
    found = [(builds._LINE.match(line), line) for line in printed]
    assert sum(match is not None for match, _ in found) == sum(line.startswith(marked) for line in lines)
    return [match.group(2) if match else line for match, line in found]
