"""How much each single weight matters, and masks that follow from it.

- ``magnitude``: ``|w|``.
- ``taylor``: ``(g · w)²``, a running mean over the training's batches (Molchanov et al. 2019, for single weights).
- ``snip``: ``|Σ g · w|`` over a few batches before anything is cut (Lee et al., "SNIP", ICLR 2019).
- ``movement``: ``-Σ g · w`` over the training so far: weights that move away from zero stay (Sanh et al.,
  "Movement Pruning", NeurIPS 2020). The gradient is that of the masked weight, also where it is masked. Where training
  is short that sum alone is noise, so it starts from the magnitude: see :meth:`Mask.movement`.
- ``wanda``: ``|w| ‖x‖`` within each output's weights, from what the layer reads (Sun et al., "A simple and effective
  pruning approach for large language models", ICLR 2024). Every output loses the same share.
- ``random``: the floor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgekit.compress.hooks import Weighted
from edgekit.compress.step import Context
from edgekit.compress.steps import prune_refit
from edgekit.compress.steps.prune import Prune

FOLLOWS_TRAINING = ("taylor", "movement")
"""Criteria whose scores change with every batch."""
_BATCHES = 16
_MEMORY = 0.98


class Mask(nn.Module):
    """A parametrization of ``weight`` with a buffer ``mask``, and ``score`` where the criterion follows training."""

    mask: torch.Tensor
    score: torch.Tensor | None
    start: torch.Tensor | None

    def __init__(self, module: nn.Module, criterion: str) -> None:
        super().__init__()
        self.criterion = criterion
        weight = module.get_parameter("weight")
        self.register_buffer("mask", torch.ones_like(weight))
        self.register_buffer("score", torch.zeros_like(weight) if criterion in FOLLOWS_TRAINING else None)
        self.register_buffer("start", weight.detach().clone() if criterion == "movement" else None)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The masked weight; its gradient, also where it is masked, goes into the score."""
        masked = weight * self.mask
        if self.score is not None and masked.requires_grad and self.training:
            masked.register_hook(lambda grad: self._collect(grad, weight.detach()))  # type: ignore[no-untyped-call]
        return masked

    def _collect(self, grad: torch.Tensor, weight: torch.Tensor) -> None:
        assert self.score is not None
        if self.criterion == "movement":
            self.score.sub_(grad.to(self.score.dtype) * weight)
        else:
            self.score.mul_(_MEMORY).add_((grad.to(self.score.dtype) * weight).square(), alpha=1 - _MEMORY)

    def movement(self, weight: torch.Tensor) -> torch.Tensor:
        """The magnitude that each weight would have if none had been masked: half of its square before training, and
        how far the gradients moved that, on the scale of the moves that the optimizer really made with the weights
        that are there. Less than zero is beyond zero."""
        assert self.score is not None
        assert self.start is not None
        half, there = self.start.square() / 2, self.mask > 0
        real, told = (weight.square() / 2 - half)[there], self.score[there]
        size = told.square().mean().sqrt() if there.any() else told.new_zeros(())
        scale = real.square().mean().sqrt() / size if size > 0 else size
        moved = half + scale * self.score
        return torch.sign(moved) * (2 * moved.abs()).sqrt()


def initial(
    model: nn.Module, targets: Mapping[str, Weighted], step: Prune, context: Context
) -> dict[str, torch.Tensor]:
    """Scores before training, by layer; empty where they follow from the weights at any time.

    Raises ``UsageError`` without a task where gradients, or what layers read, are needed.
    """
    criterion = step.criterion
    if criterion in ("magnitude", "movement"):
        return {}
    weights = {name: original(module) for name, module in targets.items()}
    if criterion == "random":
        random = torch.Generator().manual_seed(context.seed)
        return {name: torch.rand(w.shape, generator=random) for name, w in weights.items()}
    task = context.needs_task(f"the criterion {criterion}")
    if criterion == "wanda":
        norms = prune_refit.column_norms(model, targets, context, step.batches, step=step.NAME)
        return {name: _ranks(w.detach().abs() * norms[name].to(w.device)) for name, w in weights.items()}
    model.eval()
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for _, batch in zip(range(_BATCHES), task.batches(0, context.seed), strict=False):
        grads = torch.autograd.grad(task.loss(model, batch), list(weights.values()), allow_unused=True)
        for (name, w), grad in zip(weights.items(), grads, strict=True):
            if grad is not None:
                product = grad * w.detach()
                total[name] += product.square() / _BATCHES if criterion == "taylor" else product
    return {name: t.abs() if criterion == "snip" else t for name, t in total.items()}


def _ranks(score: torch.Tensor) -> torch.Tensor:
    """The rank of each weight among those of its output, as a share, alike for all outputs and layers; of equal ranks
    the one that is larger beside the largest of its output."""
    rows = score.reshape(len(score), -1)
    order = torch.argsort(torch.argsort(rows, dim=1, stable=True), dim=1)
    beside = rows / rows.amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return ((order + beside / 2) / rows.shape[1]).to(score.dtype).reshape(score.shape)


def blocks(score: torch.Tensor, size: int) -> torch.Tensor:
    """The L2 norm of each run of ``size`` neighbours along the inputs, in every place of the run.

    Whole runs are then cut together. ``score`` is [out, in, …]; runs do not cross output channels.
    """
    flat = score.reshape(len(score), -1)
    width = flat.shape[1]
    padded = nn.functional.pad(flat, (0, -width % size)).view(len(score), -1, size)
    norm = padded.square().mean(-1, keepdim=True).sqrt().expand_as(padded)
    return norm.reshape(len(score), -1)[:, :width].reshape(score.shape)


def n_of_m(score: torch.Tensor, keep: int, of: int) -> torch.Tensor | None:
    """A mask that keeps the ``keep`` best of every ``of`` neighbours along the input channels (dimension 1).

    ``None`` where the input channels are not a multiple of ``of``: the layer stays dense. Ties go to the first.
    """
    if not has_runs(score, of):
        return None
    last = score.movedim(1, -1)
    runs = last.reshape(*last.shape[:-1], -1, of)
    order = torch.argsort(runs, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(runs).scatter_(-1, order[..., :keep], 1.0)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()


def has_runs(weight: torch.Tensor, of: int) -> bool:
    """Whether the input channels are a multiple of ``of``."""
    return weight.ndim >= 2 and weight.shape[1] % of == 0


def original(module: nn.Module) -> nn.Parameter:
    """The weight under a parametrization."""
    return module.get_parameter("parametrizations.weight.original")
