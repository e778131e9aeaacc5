"""Model Explorer itself, where it is installed: it takes the adapter and the files that --graph writes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import edgekit

pytest.importorskip(
    "model_explorer",
    reason="needs Model Explorer (half a gigabyte): pip install 'edgekit-deploy[model-explorer]'",
)

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("model-explorer")]

NETWORK = """
import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(8 * 6 * 6, 4)).eval(), torch.zeros(1, 3, 8, 8)


def samples():
    generator = torch.Generator().manual_seed(1)
    for _ in range(16):
        yield torch.randn(1, 3, 8, 8, generator=generator)
"""
ADAPTER = "edgekit"
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    done = edgekit(
        "build",
        "net.py:factory",
        "--target",
        "ort-int8",
        "--calib",
        "net.py:samples",
        "--accept-data",
        "noise",
        cwd=folder,
    )
    assert done.code == 0, done.err
    for command in ("diff", "profile"):
        done = edgekit(command, "build/ort-int8", "--graph", "graph", cwd=folder)
        assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def server(built) -> Iterator[str]:
    """The address of a running one. It asks the package index for news of itself: it gets no network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = ",".join(str(p) for p in sorted((built / "graph").glob("*.json")) if p.name != "graph.json")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "model_explorer", built / "graph" / "graph.json", f"--node_data_paths={data}",
            "--extensions=edgekit.artifact.explorer", "--host=127.0.0.1", f"--port={port}", "--no_open_in_browser",
            "--skip_health_check",
        ],
        env=os.environ | nowhere,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, "Model Explorer ended"
            with contextlib.suppress(OSError):
                assert get(f"{address}/check_health") == b"model_explorer_ok"
                break
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def get(address: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with _NO_PROXY.open(request, timeout=60) as answer:
        return bytes(answer.read())


def converted(server: str, path: Path) -> dict[str, Any]:
    command = {
        "cmdId": "convert",
        "extensionId": ADAPTER,
        "modelPath": str(path),
        "settings": {},
        "deleteAfterConversion": False,
    }
    answer: dict[str, Any] = json.loads(get(f"{server}/apipost/v1/send_command", command))
    return answer


def attributes(node: dict[str, Any]) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in node["attrs"]}


def test_the_adapter_is_registered_for_the_files_that_it_reads(server):
    (ours,) = [e for e in json.loads(get(f"{server}/api/v1/get_extensions")) if e["id"] == ADAPTER]
    assert ours["type"] == "adapter"
    assert set(ours["fileExts"]) == {"onnx", "tflite", "xml"}


def test_the_adapter_gives_the_artifacts_graph_with_its_placement(server, built):
    (collection,) = converted(server, built / "build" / "ort-int8" / "model.onnx")["graphCollections"]
    (graph,) = collection["graphs"]
    convolutions = [n for n in graph["nodes"] if n["label"] == "Conv"]
    assert [n["namespace"] for n in convolutions] == ["0/0", "0/2"]
    assert {attributes(n)["placement"] for n in convolutions} == {"as asked"}
    assert all(
        10 < float(attributes(n)["snr"]) < 100 for n in convolutions
    )  # from diff, through the manifest
    assert attributes(convolutions[0])["multiply-accumulates"] == f"{8 * 8 * 8 * 3 * 9:,}"


def test_a_file_that_is_no_model_is_an_error_in_words(server, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\xff\xff")
    assert "SourceError" in converted(server, tmp_path / "m.onnx")["error"]


def test_the_graph_that_is_written_is_the_adapters_and_of_its_schema(server, built):
    from dacite import Config, from_dict
    from model_explorer.graph_builder import GraphCollection

    address = f"{server}/api/v1/read_text_file?path={urllib.parse.quote(str(built / 'graph' / 'graph.json'))}"
    written = json.loads(json.loads(get(address))["content"])
    collection = from_dict(GraphCollection, written, Config(strict=True))
    (theirs,) = converted(server, built / "build" / "ort-int8" / "model.onnx")["graphCollections"][0][
        "graphs"
    ]
    assert [n.id for n in collection.graphs[0].nodes] == [n["id"] for n in theirs["nodes"]]
    assert collection.graphs[0].id == theirs["id"]


@pytest.mark.parametrize("name", ["macs", "precision", "placement", "snr", "time", "ran-on"])
def test_node_data_are_of_its_schema_and_of_nodes_of_the_graph(built, name):
    from dacite import Config, from_dict
    from model_explorer.node_data_builder import GraphNodeData

    (graph,) = json.loads((built / "graph" / "graph.json").read_bytes())["graphs"]
    found = json.loads((built / "graph" / f"{name}.json").read_bytes())
    assert set(found) == {graph["id"]}
    data = found[graph["id"]]
    # Their class says numbers; their viewer takes words, too (showExpandedSummaryOnGroupNode is for them).
    parsed = from_dict(GraphNodeData, data, Config(strict=True, check_types=False))
    assert parsed.results
    assert set(data["results"]) <= {n["id"] for n in graph["nodes"]}
    products = {n["id"] for n in graph["nodes"] if n["label"] in ("Conv", "Gemm")}
    assert len(products) == 3
    assert products <= set(data["results"])
