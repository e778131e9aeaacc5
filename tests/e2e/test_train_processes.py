"""Training in several processes: started by ``--processes``, by a sweep's cell, and by ``torchrun`` itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import Result, edgekit
from safetensors.numpy import load_file

pytest.importorskip("lightning_fabric", reason="the extra compress is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("interruption")]

MODEL = """
import os, signal
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)).eval(), (torch.zeros(1, 8),)

def data():
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
    return [({"input": row[None].numpy()}, int(row[0] > 0)) for row in x]

def killed():
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return data()

def raising():
    if os.environ.get("RANK") == "1":
        raise OSError("the disk with the pictures is gone")
    return data()
"""
TASK = """
import subprocess
import torch
from model import data as pairs

def train_step(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

def data():
    subprocess.run(["true"], check=True)  # what it reads cannot be seen: nothing of it is kept for another run
    inputs, labels = zip(*pairs())
    x, y = torch.cat([torch.from_numpy(i["input"]) for i in inputs]), torch.tensor(labels)
    return [(x[at : at + 64], y[at : at + 64]) for at in range(0, 512, 64)]

def metric(model):
    return sum((model(x).argmax(1) == y).float().mean().item() for x, y in data()) / 8
"""
RECIPE = "prune(sparsity=0.5;training.epochs=4)"


def cache(folder: Path) -> dict[str, str]:
    return {"EDGEKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def compress(folder: Path, out: str, *more: str, train: str = "data") -> Result:
    (folder / "model.py").write_text(MODEL)
    return edgekit(
        *("compress", "model.py:net", "--recipe", RECIPE, "--task", "classification"),
        *("--train", f"model.py:{train}", "--eval", "model.py:data", "-o", out, *more),
        cwd=folder,
        env=cache(folder),
    )


def test_two_processes_train_as_one_does_and_as_torchrun_starts_them(tmp_path: Path) -> None:
    one, two = compress(tmp_path, "one"), compress(tmp_path, "two", "--processes", "2")
    assert (one.code, two.code) == (0, 0), one.err + two.err
    weights = [load_file(tmp_path / out / "weights.safetensors") for out in ("one", "two")]
    for name, alone in weights[0].items():
        assert alone == pytest.approx(weights[1][name], abs=1e-4), name
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    third = subprocess.run(
        [
            *(*launcher, "-m", "edgekit", "compress", "model.py:net", "--recipe", RECIPE, "-o", "three"),
            *("--task", "classification", "--train", "model.py:data", "--eval", "model.py:data"),
        ],
        cwd=tmp_path,
        env=os.environ | cache(tmp_path / "other"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert third.returncode == 0, third.stderr[-2000:]
    same = [(tmp_path / out / "weights.safetensors").read_bytes() for out in ("two", "three")]
    assert same[0] == same[1]


def test_they_train_once_where_nothing_may_be_kept(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "task.py").write_text(TASK)
    done = edgekit(
        *("compress", "model.py:net", "--recipe", RECIPE, "--task", "task.py:train_step", "-o", "out"),
        *("--processes", "2"),
        cwd=tmp_path,
        env=cache(tmp_path),
    )
    assert done.code == 0, done.err
    results = [p for p in (tmp_path / "cache" / "steps" / "compress").iterdir() if p.is_dir()]
    assert len(results) == 2  # each of the two has its own; a third would be of the process that asked
    assert (tmp_path / "out" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("train", "code", "words"),
    [("killed", 6, "training in 2 processes ended"), ("raising", 3, "the disk with the pictures is gone")],
)
def test_one_process_that_fails_ends_all_with_its_reason(
    tmp_path: Path, train: str, code: int, words: str
) -> None:
    done = compress(tmp_path, "out", "--processes", "2", train=train)
    assert done.code == code, done.err
    assert words in done.err
    assert "hint: " in done.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob("parts/*"))


def test_a_search_does_not_take_processes(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = edgekit(
        *(
            "compress",
            "model.py:net",
            "--budget",
            "drop<=5pt",
            "--processes",
            "2",
            "--task",
            "classification",
        ),
        *("--train", "model.py:data", "--eval", "model.py:data", "-o", "out"),
        cwd=tmp_path,
        env=cache(tmp_path),
    )
    assert done.code == 2
    assert "leave --processes out" in done.err


def test_a_cell_of_a_sweep_trains_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "sweep.toml").write_text(
        f"""
sources = ["model.py:net"]
targets = ["ort-fp32"]
recipes = ["{RECIPE}"]
[options]
processes = 2
task = "classification"
train = "model.py:data"
eval = "model.py:data"
"""
    )
    done = edgekit("sweep", "sweep.toml", "--json", cwd=tmp_path, env=cache(tmp_path))
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["results"]
    assert row["verdict"] in ("passed", "unproven")
    assert "training in 2 processes" in (tmp_path / "sweep" / "logs" / f"{row['cell']}.log").read_text()
