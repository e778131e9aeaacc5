"""A recipe run in a process of its own, which a test may kill: ``python compress_run.py WORK OUT [kill_after]``.

``kill_after`` N ends the process with SIGKILL in the N-th training step. Also the program that ``torchrun`` starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.compress.steps.cluster import Cluster
from edgekit.compress.steps.prune import Prune
from edgekit.compress.training.settings import Loop, Training, is_first_process, looping

STEPS_AN_EPOCH = 10


class Blobs:
    """Three clouds in eight dimensions, in an order that the global generator draws."""

    metric_name = "accuracy"
    fingerprint = "blobs"

    def __init__(self, kill_after: int = 0) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(300) % 3
        self.x = torch.randn(300, 8, generator=random) * 0.5 + torch.eye(8)[self.y] * 2
        self.kill_after, self.losses = kill_after, 0

    def steps(self) -> int:
        return STEPS_AN_EPOCH

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pick in torch.randperm(300).split(30):
            yield self.x[pick], self.y[pick]

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.losses += 1
        if self.losses == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: torch.nn.Module) -> float:
        with torch.no_grad():
            device = next(model.parameters()).device
            return float((model(self.x.to(device)).argmax(1).cpu() == self.y).float().mean())


def net(dropout: float = 0.2) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32),
        torch.nn.BatchNorm1d(32),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(32, 3),
    )


def recipe(precision: str = "fp32") -> tuple[Prune, Cluster]:
    long = Training(epochs=4.0, rate=1e-2, patience=10, clip=1.0, precision=precision)
    return (
        Prune(sparsity=0.6, training=long),
        Cluster(values=8, training=Training(epochs=2.0, optimizer="sgd")),
    )


def main(work: Path, out: Path, kill_after: int = 0, dropout: float = 0.2) -> None:
    task = Blobs(kill_after)
    context = Context(task=task, seed=3)
    with looping(Loop(checkpoint_s=0.0)):
        model, _ = run(net(dropout), recipe(), context, work=work)
    if is_first_process():
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
    sys.stdout.write(f"trained {task.losses}\n")  # in one piece: several processes write to one pipe
    sys.stdout.flush()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        *(int(a) for a in sys.argv[3:4]),
        *(float(a) for a in sys.argv[4:]),
    )
