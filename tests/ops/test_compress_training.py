"""The training loop: a killed run ends in the same bytes, processes train as one, precisions, loggers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from compress_run import Blobs, net, recipe  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from edgekit.compress.run import run  # noqa: E402
from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.training import checkpoint  # noqa: E402
from edgekit.compress.training.engine import engine  # noqa: E402
from edgekit.compress.training.settings import (  # noqa: E402
    Loop,
    Training,
    looping,
)
from edgekit.compress.training.train import fit  # noqa: E402
from edgekit.errors import ConfigError, UsageError  # noqa: E402

PROGRAM = Path(__file__).with_name("compress_run.py")


def start(
    work: Path, out: Path, *more: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(PROGRAM), str(work), str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = start(tmp_path / "a", tmp_path / "a.safetensors")
    assert whole.returncode == 0, whole.stderr
    total = int(whole.stdout.split()[-1])
    assert total == 60
    for kill_after in ("3", "25", "12"):  # in the first run, in a later epoch of it, in the second step
        killed = start(tmp_path / "b", tmp_path / "b.safetensors", kill_after)
        assert killed.returncode == -9
        assert not (tmp_path / "b.safetensors").exists()
    rest = start(tmp_path / "b", tmp_path / "b.safetensors")
    assert rest.returncode == 0, rest.stderr
    assert int(rest.stdout.split()[-1]) == total - 2 - 24 - 11 + 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = start(tmp_path / "w", tmp_path / "a.safetensors")
    again = start(tmp_path / "w", tmp_path / "b.safetensors")
    assert first.stdout.split()[-1] == "60"
    assert again.stdout.split()[-1] == "0", again.stderr
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not list((tmp_path / "w").glob("running-*"))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}")
    two = start(tmp_path / "two", tmp_path / "two.safetensors", "0", "0.0", launcher=launcher)
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.split().count("60") == 2
    one = start(tmp_path / "one", tmp_path / "one.safetensors", "0", "0.0")
    assert one.returncode == 0, one.stderr
    a, b = load_file(tmp_path / "two.safetensors"), load_file(tmp_path / "one.safetensors")
    # Statistics of batch normalization are each process's own, so the way is not the same to the last bit.
    model = net(0.0)
    scores = []
    for state in (a, b):
        model.load_state_dict(state)
        scores.append(Blobs().metric(model.eval()))
    assert min(scores) > 0.95
    assert float((a["0.weight"] == 0).float().mean()) == pytest.approx(
        float((b["0.weight"] == 0).float().mean()), abs=0.05
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_and_leaves_float_weights(precision: str) -> None:
    pytest.importorskip("lightning_fabric")
    if precision == "fp16" and not torch.cuda.is_available():
        pytest.skip("fp16 needs a GPU")
    task, model = Blobs(), net()
    fit(model, task, Training(epochs=10.0, rate=1e-2, precision=precision, clip=1.0), seed=0)
    assert task.metric(model) > 0.95
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact = net()
    fit(exact, Blobs(), Training(epochs=10.0, rate=1e-2, clip=1.0), seed=0)
    assert not torch.equal(exact[0].weight, model[0].weight)


@pytest.mark.gpu
def test_a_gpu_trains_and_gives_the_model_back() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    task, model = Blobs(), net()
    with looping(Loop(device="cuda")):
        fit(model, task, Training(epochs=5.0, rate=1e-2, precision="bf16"), seed=0)
        assert engine("fp32").device.type == "cuda"
    assert next(model.parameters()).device.type == "cpu"
    assert task.metric(model) > 0.95


def test_a_device_that_is_not_there_is_named() -> None:
    pytest.importorskip("lightning_fabric")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with looping(Loop(device="cuda")), pytest.raises(UsageError, match="no cuda"):
        fit(net(), Blobs(), Training(epochs=1.0), seed=0)
    with pytest.raises(ConfigError):
        Loop(device="quantum")
    with pytest.raises(ConfigError):
        Loop(loggers=("paper",))
    with pytest.raises(ConfigError):
        Training(precision="fp8")


def test_curves_go_to_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with looping(Loop(loggers=("tensorboard",), logs=tmp_path)):
        fit(net(), Blobs(), Training(epochs=2.0, patience=5), seed=0)
    events = accumulator.EventAccumulator(str(tmp_path / "run-1"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 21))
    assert len(events.Scalars("accuracy")) == 2


def test_a_checkpoint_of_other_options_is_not_used(tmp_path: Path) -> None:
    prune, cluster = recipe()
    with looping(Loop(checkpoint_s=0.0)):
        run(net(), (prune, cluster), Context(task=Blobs(), seed=3), work=tmp_path)
        before = {p.name for p in tmp_path.iterdir()}
        task = Blobs()
        run(net(), (prune, cluster), Context(task=task, seed=4), work=tmp_path)
    assert task.losses == 60
    assert len({p.name for p in tmp_path.iterdir()} - before) == 2


def test_what_is_kept_is_no_pickle(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x", {"a": torch.ones(2)}, {"n": float("inf"), "s": "ü"})
    raw = (tmp_path / "x").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert set(header) == {"__metadata__", "a"}
    tensors, facts = checkpoint.read(tmp_path / "x")
    assert torch.equal(tensors["a"], torch.ones(2))
    assert facts == {"n": float("inf"), "s": "ü"}
