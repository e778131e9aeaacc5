"""Functions of PyTorch that look at values on their way, where a graph need not: what is traced in their place.

``torch.cov`` asks whether its divisor is zero, a loss whether a variance is negative, a packed sequence how long its
rows are: a trace cannot answer. Each function here computes what the original does for inputs that this accepts.
They are used where the plain export has failed; the comparison with the module decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgekit.graph.export import packed

_NEVER = -1e30


class Replaced(TorchFunctionMode):
    """While it is entered, calls of :data:`FUNCTIONS` and of packed sequences' functions are replaced; ``used``: some
    were."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False
        self._packed = packed.Sequences()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        other = FUNCTIONS.get(func) or self._packed.function(func, args)
        if other is None:
            return func(*args, **(kwargs or {}))
        self.used = True
        return other(*args, **(kwargs or {}))


def covariance(
    x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """Rows are variables; how often and how strongly each column counts."""
    rows = x if x.dim() == 2 else x.reshape(1, -1)
    count = rows.shape[1]
    if fweights is None and aweights is None:
        centred = rows - rows.mean(1, keepdim=True)
        result = centred @ centred.mT / max(count - correction, 0)
        return result.squeeze()
    often = torch.ones(count, dtype=rows.dtype) if fweights is None else fweights.to(rows.dtype)
    weights = often if aweights is None else often * aweights
    total = weights.sum()
    mean = (rows * weights).sum(1, keepdim=True) / total
    lost = correction if aweights is None else correction * (weights * aweights).sum() / total
    centred = rows - mean
    return ((centred * weights) @ centred.mT / (total - lost).clamp(min=0)).squeeze()


def correlation(x: Tensor) -> Tensor:
    """The covariance by the standard deviations, within -1 and 1."""
    c = covariance(x)
    if c.dim() == 0:
        return c / c
    deviations = c.diagonal().sqrt()
    return (c / deviations[:, None] / deviations).clamp(-1, 1)


def gaussian_likelihood(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Variances are at least ``eps``; one a row where they have an axis less."""
    spread = var if isinstance(var, Tensor) else torch.full_like(input, var)
    if spread.shape != input.shape and input.shape[:-1] == spread.shape:
        spread = spread.unsqueeze(-1)
    spread = spread.clamp(min=eps)
    losses = 0.5 * (spread.log() + (input - target) ** 2 / spread)
    if full:
        losses = losses + 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return _reduced(losses, reduction)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


_LONGEST = 256
"""Steps of :func:`connectionist`: each is a dozen operators."""


def connectionist(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Forward sums over all alignments (Graves et al., 2006), step by step; targets as one row a sequence."""
    if log_probs.dim() != 3 or targets.dim() != 2 or log_probs.shape[0] > _LONGEST:
        given = (log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
        return functional.ctc_loss(*given)
    lengths, goals = (torch.as_tensor(n) for n in (input_lengths, target_lengths))
    sums = _alignments(log_probs, targets, lengths, blank)
    ends = torch.stack([2 * goals - 1, 2 * goals], -1).clamp(min=0)
    last = sums.gather(1, ends)
    last = torch.where((goals == 0).unsqueeze(1) & (torch.arange(2) == 0), _NEVER, last)
    total = last.logsumexp(1)
    losses = torch.where(total < _NEVER / 2, 0.0 if zero_infinity else float("inf"), -total)
    if reduction == "mean":
        return (losses / goals.clamp(min=1)).mean()
    return _reduced(losses, reduction)


def _alignments(scores: Tensor, targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """The logarithm of the sum over alignments that end in each place of the targets with blanks between them."""
    blanks = torch.full_like(targets, blank)
    path = torch.cat([torch.stack([blanks, targets], -1).flatten(1), blanks[:, :1]], 1)
    places = torch.arange(path.shape[1])
    before = functional.pad(path[:, :-2], (2, 0), value=blank)
    skips = (path != blank) & (path != before) & (places >= 2)
    sums = torch.where(places < 2, scores[0].gather(1, path), _NEVER)
    for step in range(1, scores.shape[0]):
        one = functional.pad(sums[:, :-1], (1, 0), value=_NEVER)
        two = torch.where(skips, functional.pad(sums[:, :-2], (2, 0), value=_NEVER), _NEVER)
        moved = torch.stack([sums, one, two], -1).logsumexp(-1) + scores[step].gather(1, path)
        sums = torch.where((step < lengths).unsqueeze(1), moved, sums)
    return sums


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    torch.cov: covariance,
    torch.Tensor.cov: covariance,
    torch.corrcoef: correlation,
    torch.Tensor.corrcoef: correlation,
    functional.gaussian_nll_loss: gaussian_likelihood,
    functional.ctc_loss: connectionist,
}
