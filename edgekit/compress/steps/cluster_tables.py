"""The tables of ``cluster``: found by k-means or by what the loss minds, shared by parametrizations, trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.compress import constraints
from edgekit.compress.constraints import Constraint, Values
from edgekit.compress.curvature import curvature
from edgekit.compress.hooks import Weighted
from edgekit.compress.step import Context, Tensors
from edgekit.compress.steps import cluster_coded, patterns
from edgekit.compress.steps.cluster import Cluster, parse_values
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit

_ITERATIONS = 40
_TABLE = ".table"


def apply(step: Cluster, model: nn.Module, context: Context) -> nn.Module:
    """Cluster in place and return ``model``; the tables are recorded.

    Raises ``SourceError`` if no layer can be clustered, ``ComposeError`` if all hold integers, ``UsageError`` with
    ``bits`` and no task.
    """
    targets = constraints.float_layers(model, step.NAME)
    counts = _counts(step, targets)
    if step.bits:
        tables = _coded(step, model, targets, counts, context)
    else:
        # Layer by layer, from the weights alone.
        tables = {
            name: Shared(*kmeans(m.weight.detach(), counts[name], step.bias)) for name, m in targets.items()
        }
    for name, module in targets.items():
        parametrize.register_parametrization(module, "weight", tables[name])
        # The original stays where it was; what is trained is the table.
        module.get_parameter("parametrizations.weight.original").requires_grad_(False)
    try:
        if step.training.epochs:
            fit(model, taught(step.NAME, step.training, context), step.training, seed=context.seed)
    finally:
        for module in targets.values():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.get_parameter("weight").requires_grad_(True)
    for module in targets.values() if step.bias_bits else ():
        BiasBits(bits=step.bias_bits).close(module)
    context.record({f"{name}{_TABLE}": table.table.detach() for name, table in tables.items()})
    for name, module in targets.items():
        constraints.lay(module, *_laid(step, len(tables[name].table) - 1))
    return model


def _laid(step: Cluster, count: int) -> tuple[Constraint, ...]:
    """What a layer of ``count`` values keeps."""
    rounded = (BiasBits(bits=step.bias_bits),) if step.bias_bits else ()
    return (Values(count=count), *rounded)


@dataclass(frozen=True)
class BiasBits(Constraint):
    """A bias of few bits of mantissa: trained as it is, and rounded behind every training."""

    WHAT: ClassVar[str] = "bits of the bias"

    bits: int

    def close(self, layer: nn.Module) -> None:
        """Round the bias, if there is one."""
        if isinstance(layer.bias, nn.Parameter):
            layer.bias.data.copy_(round_mantissa(layer.bias.data, self.bits))

    def holds(self, layer: nn.Module) -> bool:
        """Whether it is rounded."""
        bias = layer.bias
        return not isinstance(bias, nn.Parameter) or bool(
            (round_mantissa(bias.data, self.bits) == bias).all()
        )


def restore(step: Cluster, model: nn.Module, tensors: Tensors) -> nn.Module:
    """How many values each layer has, for what trains later."""
    for name, table in tensors.items():
        constraints.lay_on(model, name.removesuffix(_TABLE), *_laid(step, len(table) - 1))
    return model


def rehearse(step: Cluster, model: nn.Module, context: Context) -> nn.Module:
    """The numbers of values, for what later steps would refuse."""
    del context
    targets = constraints.float_layers(model, step.NAME)
    for name, count in _counts(step, targets).items():
        constraints.lay(targets[name], *_laid(step, count))
    return model


def _counts(step: Cluster, targets: Mapping[str, Weighted]) -> dict[str, int]:
    """The most values for each layer: no more than it has already."""
    rules = parse_values(step.layers)
    counts = {name: patterns.first(rules, name, step.values) for name in targets}
    return {name: min(count, constraints.values(targets[name]) or count) for name, count in counts.items()}


def _coded(
    step: Cluster,
    model: nn.Module,
    targets: Mapping[str, Weighted],
    counts: Mapping[str, int],
    context: Context,
) -> dict[str, Shared]:
    """All layers together, by what the loss minds. The biases take up what they can."""
    curvatures = curvature(model, targets, context, step.batches, step=step.NAME)
    weights = {name: m.weight.detach() for name, m in targets.items()}
    tables = {}
    for name, shares in cluster_coded.share(weights, curvatures, counts, step.bits).items():
        device, bias = weights[name].device, targets[name].bias
        if isinstance(bias, nn.Parameter) and shares.shift is not None:
            bias.data += shares.shift.to(device)
        tables[name] = Shared(shares.table.to(device), shares.index.to(device))
    return tables


def round_mantissa(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest number with ``bits`` bits of mantissa below the leading one (relative error 2^-(bits+1))."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)


def kmeans(weight: torch.Tensor, count: int, bias: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One-dimensional k-means of the non-zero entries from quantiles of their magnitudes.

    Gives (table [≤ count + 1] with 0 first, index of every weight into it, in the shape of ``weight``).
    """
    flat = weight.flatten()
    some = flat[flat != 0].double()
    index = torch.zeros(flat.shape, dtype=torch.int64)
    if not len(some):
        return flat.new_zeros(1), index.view(weight.shape)
    distinct = torch.unique(some)
    if len(distinct) <= count:
        centres = distinct
    else:
        # Half-way between linear and quantiles: outliers matter (Deep Compression, section 3.2), so does density.
        at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        quantiles = torch.quantile(some[:: max(1, len(some) // 1_000_000)], at)
        linear = some.min() + (some.max() - some.min()) * at
        centres = ((quantiles + linear) / 2).sort().values
    spread = some.var(unbiased=False)  # makes ``bias`` mean the same in layers of any magnitude
    bits = torch.zeros(len(centres), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        nearest = cluster_coded.assign(some, centres, bias * spread * bits)
        members = torch.bincount(nearest, minlength=len(centres)).double()
        sums = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, nearest, some)
        keep = members > 0
        centres, members = (sums / members.clamp_min(1))[keep], members[keep]
        bits = -torch.log2(members / members.sum())
    index[flat != 0] = cluster_coded.assign(some, centres, bias * spread * bits) + 1
    table = torch.cat([centres.new_zeros(1), centres]).to(weight.dtype)
    return table, index.view(weight.shape)


class _Gather(torch.autograd.Function):
    """``values[where]``. In the backward, bincount is several times quicker than the built-in index_add."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, where)
        return values[where]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, where = ctx.saved_tensors
        (grad,) = gradients
        sums = torch.bincount(where.flatten(), weights=grad.flatten().double(), minlength=len(values))
        sums[0] = 0  # zero stays zero
        return sums.to(grad.dtype), None


class Shared(nn.Module):
    """A parametrization: the weight from a trained ``table`` and an ``index`` into it, in the weight's shape."""

    index: torch.Tensor

    def __init__(self, table: torch.Tensor, index: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.register_buffer("index", index)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The shared weights; what they replaced is not looked at."""
        del weight
        shared: torch.Tensor = _Gather.apply(self.table, self.index)  # type: ignore[no-untyped-call]
        return shared
