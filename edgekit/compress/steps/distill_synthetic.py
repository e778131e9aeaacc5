"""Inputs made from the teacher alone, for distillation without data.

Images start as noise and are moved until the statistics of every batch normalization's input match those that
the teacher has stored, and until the teacher is sure of some class, with a penalty on rough images (Yin et al.,
"Dreaming to distill", CVPR 2020, without its competition term). A teacher without batch normalization, or with
integer inputs, gets random inputs instead: there is nothing in it that inputs could be matched to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekit.compress.hooks import removed
from edgekit.compress.step import Tensors, forward
from edgekit.compress.training.task import Task
from edgekit.compress.training.teacher import pick

BATCH = 32
UPDATES = 200


class Synthetic:
    """A training task without labels; ``judge`` gives the metric where there is one."""

    def __init__(
        self,
        *,
        teacher: nn.Module,
        like: Tensors,
        count: int,
        seed: int,
        judge: Task | None,
    ) -> None:
        self.judge, self.count, self.seed = judge, max(BATCH, count), seed
        self.items = [make(teacher, like, seed * 1009 + i) for i in range(self.steps())]

    @property
    def fingerprint(self) -> str:
        """Count and seed: the rest follows from the teacher."""
        return hashlib.sha256(f"synthetic {self.count} {self.seed}".encode()).hexdigest()

    @property
    def metric_name(self) -> str:
        """The judge's."""
        return self.judge.metric_name if self.judge is not None else ""

    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-self.count // BATCH)

    def batches(self, epoch: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """The same inputs each epoch, in another order of batches."""
        order = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(seed * 1009 + epoch))
        return (self.items[i] for i in order.tolist())

    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        """Nothing of its own: it only calls the model."""
        return pick(forward(model, batch), "").sum() * 0

    def metric(self, model: nn.Module) -> float:
        """The judge's figure, or 0."""
        return self.judge.metric(model) if self.judge is not None else 0.0


def make(teacher: nn.Module, like: Tensors, seed: int) -> dict[str, torch.Tensor]:
    """One batch of inputs shaped like ``like``."""
    random = torch.Generator().manual_seed(seed)
    inputs: dict[str, torch.Tensor] = {}
    classes = {name: _classes(teacher, like, name) for name in like}
    for name, example in like.items():
        shape = (BATCH, *example.shape[1:])
        if example.is_floating_point():
            inputs[name] = torch.randn(shape, generator=random, dtype=example.dtype)
        elif _is_mask(example):
            inputs[name] = torch.ones(shape, dtype=example.dtype)
        else:
            inputs[name] = torch.randint(0, classes[name], shape, generator=random, dtype=example.dtype)
    norms = [m for m in teacher.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if norms and any(t.is_floating_point() for t in inputs.values()):
        _match(teacher, inputs, norms)
    return {name: tensor.detach() for name, tensor in inputs.items()}


def _is_mask(example: torch.Tensor) -> bool:
    return int(example.max()) <= 1


def _classes(teacher: nn.Module, like: Tensors, name: str) -> int:
    """How many values an integer input may have: as many as the largest embedding where it alone looks one up,
    else no more than its example shows."""
    lookups = [n for n, t in like.items() if not t.is_floating_point() and not _is_mask(t)]
    sizes = [m.num_embeddings for m in teacher.modules() if isinstance(m, nn.Embedding)]
    return max(sizes) if lookups == [name] and sizes else int(like[name].max()) + 1


def _match(teacher: nn.Module, inputs: dict[str, torch.Tensor], norms: Sequence[_BatchNorm]) -> None:
    """Move float inputs, in place, towards the statistics that ``norms`` stored."""
    floats = {name: t.requires_grad_() for name, t in inputs.items() if t.is_floating_point()}
    optimizer = torch.optim.Adam(list(floats.values()), lr=0.05)
    gaps: list[torch.Tensor] = []

    def gap(module: _BatchNorm, args: tuple[torch.Tensor, ...]) -> None:
        assert module.running_mean is not None
        assert module.running_var is not None
        x = args[0].transpose(0, 1).flatten(1) if args[0].ndim > 2 else args[0].T
        mean = (x.mean(1) - module.running_mean).square().mean()
        scale = module.running_var.clamp_min(1e-6)
        gaps.append(mean / scale.mean() + ((x.var(1, unbiased=False) - scale) / scale).square().mean())

    with removed([m.register_forward_pre_hook(gap) for m in norms]), torch.enable_grad():
        for _ in range(UPDATES):
            gaps.clear()
            optimizer.zero_grad(set_to_none=True)
            scores = pick(forward(teacher, inputs), "")
            log = torch.log_softmax(scores.flatten(1).float(), -1)
            sure = -(log.exp() * log).sum(-1).mean()
            rough = sum((_roughness(t) for t in floats.values()), scores.new_zeros(()))
            loss = torch.stack(gaps).mean() + 0.1 * sure + 0.01 * rough
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _roughness(x: torch.Tensor) -> torch.Tensor:
    """Mean square difference of neighbours over the last axis, and the one before it in images."""
    out = (x[..., 1:] - x[..., :-1]).square().mean()
    return out + (x[..., 1:, :] - x[..., :-1, :]).square().mean() if x.ndim > 3 else out
