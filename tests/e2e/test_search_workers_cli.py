"""``edgekit compress --budget --workers``: the same end as with one worker, on a real network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import Result, edgekit

pytest.importorskip("optuna", reason="the extra compress is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("interruption")]

MODEL = """
import torch
from torch import nn

def data():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    return [({"input": row[None].numpy()}, int(row[0] > 0)) for row in x]

def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():  # as trained: the first input decides
        net[0].weight[:2] = torch.tensor([[4.0] + [0.0] * 7, [-4.0] + [0.0] * 7])
        net[0].bias[:2] = 0
        net[2].weight[:] = torch.randn(2, 64) * 0.01
        net[2].weight[:, :2] = torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    return net.eval(), (torch.zeros(1, 8),)
"""


def searched(folder: Path, workers: int) -> Result:
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    return edgekit(
        *("compress", "model.py:net", "--budget", "drop<=5pt", "--trials", "10", "--workers", workers),
        *("--steps", "prune,cluster", "--task", "classification", "--eval", "model.py:data"),
        *("--target", "ort-fp32,ort-int8-weights", "-o", "out", "--json"),
        cwd=folder,
        env={"EDGEKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )


def trials(folder: Path) -> list[dict[str, object]]:
    _, *rows = (folder / "out" / "search.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(row).items() if k not in ("seconds", "sha256")} for row in rows]


def test_two_workers_come_to_the_same_end(tmp_path: Path) -> None:
    one, two = searched(tmp_path / "one", 1), searched(tmp_path / "two", 2)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert trials(tmp_path / "one") == trials(tmp_path / "two")
    names = ("recipe.toml", "weights.safetensors")
    for name in names:
        paths = [tmp_path / run / "out" / name for run in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name
    assert one.json["winner"]["line"] == two.json["winner"]["line"]
    assert not (tmp_path / "two" / "out" / ".search").exists()


def test_a_latency_limit_is_for_one_worker(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = edgekit(
        *("compress", "model.py:net", "--budget", "drop<=5pt,latency<=5ms", "--workers", "2"),
        *("--task", "classification", "--eval", "model.py:data", "-o", "out"),
        cwd=tmp_path,
        env={"EDGEKIT_CACHE": str(tmp_path / "cache")},
    )
    assert done.code == 2
    assert "leave --workers out" in done.err
