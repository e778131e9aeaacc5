"""The penalties of ``sparsify``, added to a task's loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekit.compress.constraints import of
from edgekit.compress.hooks import Weighted, prunable
from edgekit.compress.step import Context
from edgekit.compress.steps.sparsify import Sparsify
from edgekit.compress.training.task import AnyBatch, DerivedTask, Task
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit


def apply(step: Sparsify, model: nn.Module, context: Context) -> nn.Module:
    """Train in place and return ``model``. Raises ``UsageError`` without a task."""
    fit(
        model,
        PenalisedTask(step, taught(step.NAME, step.training, context)),
        step.training,
        seed=context.seed,
    )
    return model


class PenalisedTask(DerivedTask):
    """A task with the penalties of a step."""

    def __init__(self, step: Sparsify, task: Task) -> None:
        super().__init__(task)
        self.step = step

    def loss(self, model: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The task's and the penalties."""
        return self.task.loss(model, batch) + penalty(self.step, model)


def penalty(step: Sparsify, model: nn.Module) -> torch.Tensor:
    """What is added to the loss: a scalar."""
    layers = {id(m) for m in prunable(model).values()}
    # Integers are floats while they are trained.
    weights = [m.weight for m in model.modules() if isinstance(m, Weighted) and (id(m) in layers or of(m))]
    total = torch.zeros((), device=weights[0].device) if weights else torch.zeros(())
    for weight in weights:
        if step.l1:
            total = total + step.l1 * weight.abs().sum()
        if step.group:
            # √(n) weighs groups of different sizes alike; the small number keeps the gradient at zero finite.
            norms = (weight.flatten(1).square().sum(1) + 1e-12).sqrt()
            total = total + step.group * weight[0].numel() ** 0.5 * norms.sum()
    for module in model.modules() if step.scale else ():
        if isinstance(module, _BatchNorm) and module.affine:
            total = total + step.scale * module.weight.abs().sum()
    return total
