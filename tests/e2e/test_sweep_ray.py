"""Sweeps on a Ray cluster of several nodes on this machine: nodes and drivers that are killed, storage, devices."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import edgekit
from test_sweep import project, results

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("obstore", reason="the extra 'ray' is not installed")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a node may need longer to start than Ray waits by default."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that works on nothing; tests add nodes."""
    patient(monkeypatch)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def command(file: Path, cluster: Any, out: Path, *more: str) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "edgekit",
        "sweep",
        str(file),
        "--engine",
        "ray",
        "--address",
        cluster.address,
    ]
    return [*words, "--out", str(out), *more]


def started(*words: Any, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


def stored(out: Path) -> dict[Path, int]:
    """Results in the storage, with when each was written."""
    return {p: p.stat().st_mtime_ns for p in (out / "storage" / "cells").glob("*/*.json")}


def wait_for(some: int, out: Path, run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while len(stored(out)) < some and run.poll() is None and time.monotonic() < end:
        time.sleep(0.1)


def digests(out: Path) -> dict[str, object]:
    return {name: r["digest"] for name, r in results(out).items()}


def test_killed_nodes_and_drivers_lose_and_repeat_nothing(cluster, tmp_path):
    file = project(tmp_path / "p", [f"m{n}.onnx" for n in range(3)], '"ort-fp32", "ort-fp16"')
    out = tmp_path / "out"
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    run = started(file, cluster, out)
    wait_for(1, out, run)
    cluster.remove_node(second, allow_graceful=False)
    before = stored(out)
    assert before
    wait_for(len(before) + 1, out, run)
    run.kill()
    run.wait()
    before = stored(out)
    assert len(before) < 6
    cluster.add_node(num_cpus=1)
    done = started(file, cluster, out)
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    after = stored(out)
    assert len(after) == 6
    assert {p: after[p] for p in before} == before
    here = tmp_path / "here"
    assert edgekit("sweep", file, "--out", here, "--workers", 1).code == 0
    assert digests(out) == digests(here)


def test_failing_cells_are_rows_and_their_logs_are_here(cluster, tmp_path):
    cluster.add_node(num_cpus=2)
    file = project(tmp_path / "p", ["m0.onnx", "missing.onnx", "odd.py:exits", "odd.py:aborts"])
    out = tmp_path / "out"
    run = started(file, cluster, out)
    _, err = run.communicate(timeout=600)
    rows = {r["source"]: r for r in results(out).values()}
    codes = {source: (r["failure"] or {}).get("exit_code", 0) for source, r in rows.items()}
    assert codes == {"m0.onnx": 0, "missing.onnx": 3, "odd.py:exits": 3, "odd.py:aborts": 6}, err
    assert run.returncode == 3
    assert len(list((out / "logs").glob("*.log"))) == 4
    again = started(file, cluster, out)
    _, err = again.communicate(timeout=600)
    assert "4 of 4 cells are finished already" in err


NET = """
import os
from pathlib import Path

import torch
from edgekit import TorchModel


def net():
    torch.manual_seed(int((Path(__file__).parent / "seed.txt").read_text()) + int(os.environ.get("SEED_OF_MINE", 0)))
    return TorchModel(module=torch.nn.Linear(8, 8), example_inputs={"input": torch.zeros(1, 8)})
"""


def test_edited_files_are_built_again_and_a_recipe_gives_what_it_gives_here(cluster, tmp_path):
    """The storage still has the rows of before the edit, under the same keys: they answer nothing."""
    cluster.add_node(num_cpus=2)
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "seed.txt").write_text("1")
    file = folder / "sweep.toml"
    file.write_text(
        'sources = ["net.py:net"]\ntargets = ["ort-fp32"]\nrecipes = ["", "prune(sparsity=0.5)"]\n'
        "[options]\nspeed_gate = false\n"
    )
    found = []
    for seed in ("1", "7"):
        (folder / "seed.txt").write_text(seed)
        run = started(file, cluster, tmp_path / "out")
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err
        here = tmp_path / f"here{seed}"
        assert edgekit("sweep", file, "--out", here, "--workers", 1).code == 0
        assert digests(tmp_path / "out") == digests(here)
        found.append(digests(here))
    assert all(found[0][name] != found[1][name] for name in found[0])
    run = started(file, cluster, tmp_path / "out", SEED_OF_MINE="9")
    _, err = run.communicate(timeout=600)
    assert run.returncode == 2
    assert "SEED_OF_MINE, which the node has otherwise" in err


def test_a_device_that_no_node_has_is_said(cluster, tmp_path):
    cluster.add_node(num_cpus=1)
    file = project(tmp_path / "p", ["m0.onnx"])
    devices = tmp_path / "p" / ".edgekit" / "devices"
    devices.mkdir(parents=True)
    (devices / "board.toml").write_text('name = "board"\naddress = "board.invalid"\n')
    file.write_text('devices = ["board"]\n' + file.read_text())
    run = started(file, cluster, tmp_path / "out")
    _, err = run.communicate(timeout=300)
    assert run.returncode == 2, err
    assert "device:board" in err


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """An S3 server: moto's, a program of its own (its packages and edgekit's do not fit together)."""
    program = os.environ.get("EDGEKIT_MOTO_SERVER") or shutil.which("moto_server")
    if program is None:
        pytest.skip("moto_server is not on the PATH, and EDGEKIT_MOTO_SERVER does not name it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


def test_storage_over_s3(bucket, tmp_path, monkeypatch):
    from edgekit.sweep.storage import Storage, packed, unpacked

    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    storage = Storage("s3://bucket/sweep")
    assert storage.get("cells/a/1.json") is None
    assert storage.names("cells/a") == []
    storage.put("cells/a/1.json", b"1")
    storage.put("cells/a/2.tar", b"2" * 100)
    assert storage.get("cells/a/1.json") == b"1"
    assert storage.names("cells/a") == ["1.json", "2.tar"]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "file").write_text("x")
    storage.put("x.tar", packed(tmp_path / "in", [tmp_path / "in" / "sub"]))
    (tmp_path / "out").mkdir()
    unpacked(storage.get("x.tar") or b"", tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "x"


def test_a_sweep_over_s3_gives_the_same_artifacts(bucket, tmp_path, monkeypatch):
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)  # before the nodes start: they inherit it
    patient(monkeypatch)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        file = project(tmp_path / "p", ["m0.onnx", "m1.onnx"], '"ort-fp32", "ort-fp16"')
        run = started(file, cluster, tmp_path / "out", "--storage", "s3://bucket/sweep")
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err
        shutil.rmtree(tmp_path / "out")  # the driver's machine is lost: everything is in the storage
        again = started(file, cluster, tmp_path / "out", "--storage", "s3://bucket/sweep")
        _, err = again.communicate(timeout=600)
        assert "4 of 4 cells are finished already" in err
    finally:
        cluster.shutdown()
    here = tmp_path / "here"
    assert edgekit("sweep", file, "--out", here, "--workers", 1).code == 0
    assert digests(tmp_path / "out") == digests(here)
    assert json.loads((here / "results.json").read_text())["finished"] == 4
