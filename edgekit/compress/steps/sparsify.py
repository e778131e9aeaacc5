"""Sparsity-aware training: a penalty that drives weights, or whole channels, towards zero before they are cut.

``l1`` is the lasso on single weights. ``group`` is the group lasso ``λ Σ √n ‖w_g‖₂`` over output channels (Yuan & Lin
2006; Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016), ``scale`` the lasso on the
scales of batch norms (Liu et al., "Network Slimming", 2017). Nothing is cut here: ``prune`` or ``shrink`` come next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress.steps.prune import prunable
from edgekit.compress.training.train import Task, Training, fit
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Train with penalties on weights (``l1``), output channels (``group``) and batch norm scales (``scale``)."""

    NAME: ClassVar[str] = "sparsify"

    l1: float = 0.0
    group: float = 1e-4
    scale: float = 0.0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if min(self.l1, self.group, self.scale) < 0 or not self.l1 + self.group + self.scale:
            raise ConfigError(
                f"sparsify with l1 {self.l1}, group {self.group}, scale {self.scale}",
                hint="penalties are not negative, and at least one is positive",
            )

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Train in place and return ``model``. Raises ``UsageError`` without a task."""
        fit(
            model, _Penalised(step=self, task=context.needs_task(self.NAME)), self.training, seed=context.seed
        )
        return model

    def penalty(self, model: torch.nn.Module) -> torch.Tensor:
        """What is added to the loss: a scalar."""
        import torch

        weights = [m.get_parameter("weight") for m in prunable(model).values()]
        total = torch.zeros((), device=weights[0].device) if weights else torch.zeros(())
        for weight in weights:
            if self.l1:
                total = total + self.l1 * weight.abs().sum()
            if self.group:
                # √(n) weighs groups of different sizes alike; the small number keeps the gradient at zero finite.
                norms = (weight.flatten(1).square().sum(1) + 1e-12).sqrt()
                total = total + self.group * weight[0].numel() ** 0.5 * norms.sum()
        for module in model.modules() if self.scale else ():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.affine:
                total = total + self.scale * module.weight.abs().sum()
        return total


@dataclass(frozen=True, kw_only=True)
class _Penalised:
    """A task with a penalty."""

    step: Sparsify
    task: Task

    @property
    def fingerprint(self) -> str:
        return self.task.fingerprint

    @property
    def metric_name(self) -> str:
        return self.task.metric_name

    def steps(self) -> int:
        return self.task.steps()

    def batches(self, epoch: int, seed: int) -> Iterable[Any]:
        return self.task.batches(epoch, seed)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return self.task.loss(model, batch) + self.step.penalty(model)

    def metric(self, model: torch.nn.Module) -> float:
        return self.task.metric(model)
