"""What ``edgekit diff`` measured of each layer is in the manifest, and in every graph that is drawn of the artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_process import edgekit

from edgekit.artifact import manifest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("graph-snr")]

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


@pytest.fixture(scope="module", params=["ort-int8", "tflite-int8"])
def compared(request, tmp_path_factory) -> tuple[Path, dict, Path]:
    """An artifact that was compared with its source, what the comparison said, and a copy from before it."""
    if request.param.startswith("tflite"):
        pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("graph-snr")
    (folder / "net.py").write_text(NETWORK)
    build = (
        "build",
        "net.py:factory",
        "-t",
        request.param,
        "--calib",
        "net.py:samples",
        "--accept-data",
        "noise",
    )
    done = edgekit(*build, cwd=folder)
    assert done.code == 0, done.err
    artifact = folder / "build" / request.param
    shutil.copytree(artifact, folder / "before")
    done = edgekit("diff", artifact, "--json", cwd=folder)
    assert done.code == 0, done.err
    return artifact, json.loads(done.out), folder / "before"


def drawn(artifact: Path, out: Path) -> dict[str, dict]:
    done = edgekit("inspect", artifact, "--graph", out)
    assert done.code == 0, done.err
    assert done.out.count("snr.json") + done.err.count("snr.json") == (out / "snr.json").is_file()
    return {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}


def test_inspect_lays_it_over_the_graph(compared, tmp_path):
    artifact, said, before = compared
    assert not {"snr", "beyond-rounding"} & drawn(before, tmp_path / "before").keys()
    found = drawn(artifact, tmp_path / "after")
    (graph,) = found["graph"]["graphs"]
    values = found["snr"][graph["id"]]["results"]
    products = [
        n for n in graph["nodes"] if n["label"].lower() in ("conv", "gemm", "conv_2d", "fully_connected")
    ]
    assert len(products) == 3
    everything = {round(layer["local_db"], 2) for stage in said["stages"] for layer in stage["layers"]}
    for node in products:
        value = values[node["id"]]["value"]
        assert value in everything
        assert 15 < value < 100  # integers: neither exact nor broken
        (shown,) = (pair["value"] for pair in node["attrs"] if pair["key"] == "snr")
        assert float(shown) == pytest.approx(value, rel=1e-3)
    assert "beyond-rounding" in found


def test_the_artifact_is_the_same_and_a_build_leaves_it(compared):
    artifact, _, before = compared
    after, first = manifest.read(artifact).manifest, manifest.read(before).manifest
    assert first.compared is None
    assert after.compared is not None
    assert after.compared.samples >= 1
    assert after.digest == first.digest
    build = (
        "build",
        "net.py:factory",
        "-t",
        artifact.name,
        "--calib",
        "net.py:samples",
        "--accept-data",
        "noise",
    )
    assert edgekit(*build, cwd=artifact.parents[1]).code == 0
    assert manifest.read(artifact).manifest.compared == after.compared


def test_what_was_not_held_against_its_source_is_not_recorded(compared, tmp_path):
    artifact, _, before = compared
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(before, one)
    shutil.copytree(before, two)
    assert edgekit("diff", one, two).code == 0
    assert manifest.read(one).manifest.compared is manifest.read(two).manifest.compared is None
    # A file that is not the one that was built: what is found is not the artifact's.
    file = manifest.read(two).model
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    edgekit("diff", f"{artifact.parents[1]}/net.py:factory", two)
    assert manifest.read(two).manifest.compared is None
