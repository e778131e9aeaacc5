"""Weight sharing: few distinct values a layer, trained together.

Han, Mao & Dally, "Deep Compression" (ICLR 2016): one-dimensional k-means over a layer's weights, then the
table is trained by the sum of its members' gradients. Zeros stay zero and take no entry. ``bias`` moves
the boundaries between values towards the rarer one, in the sense of entropy-constrained quantization
(Chou, Lookabaugh & Gray 1989): the cost of a weight is ``(w - c)² + bias · σ² · bits(c)``, because what is
stored in the end is the entropy of the indices, not their width. With ``bits`` the loss itself is weighed against the
coded size, over all layers together (:mod:`edgekit.compress.steps.cluster_coded`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress.curvature import curvature
from edgekit.compress.steps import cluster_coded
from edgekit.compress.steps.prune import prunable
from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

_ITERATIONS = 40


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Let the weights of each linear and convolution layer share ``values`` distinct values besides zero.

    ``layers``: other numbers for single layers, ``"conv1=16,fc*=6"``. ``bias`` ≥ 0 trades precision for
    entropy. ``bits`` > 0 is what a weight may cost when it is coded, tables included, on average over all layers:
    values and assignments are then those of least loss on ``batches`` of the task's training data, ``values`` the most
    that a table may have. ``bias_bits`` > 0 rounds the layers' biases to so many bits of mantissa in the end: in a
    small net they are a quarter of the file. Training moves the tables and the layers' biases, never the assignment.
    """

    NAME: ClassVar[str] = "cluster"

    values: int = 15
    layers: str = ""
    bias: float = 0.0
    bits: float = 0.0
    batches: int = 8
    bias_bits: int = 0
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 1 <= self.values <= 4096 or self.bias < 0 or not 0 <= self.bias_bits <= 23:
            raise ConfigError(
                f"cluster with {self.values} values, bias {self.bias} and bias_bits {self.bias_bits}",
                hint="1 to 4096 values, a bias that is not negative, 0 to 23 bits",
            )
        if self.bits < 0 or self.batches < 1 or (self.bits and self.bias):
            raise ConfigError(
                f"cluster with {self.bits} bits a weight, {self.batches} batches and bias {self.bias}",
                hint="bits that are not negative, at least one batch; bits or bias, not both",
            )
        parse_values(self.layers)

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Cluster in place and return ``model``.

        Raises ``SourceError`` if no layer can be clustered, ``UsageError`` with ``bits`` and no task.
        """
        import torch
        from torch.nn.utils import parametrize

        targets = prunable(model)
        if not targets:
            raise SourceError("the model has no linear or convolution layer", hint="leave this step out")
        tables = self._coded(model, targets, context) if self.bits else self._nearest(targets)
        for name, module in targets.items():
            parametrize.register_parametrization(module, "weight", tables[name])
            module.get_parameter("parametrizations.weight.original").requires_grad_(False)
        try:
            if self.training.epochs:
                fit(model, context.needs_task(self.NAME), self.training, seed=context.seed)
        finally:
            for module in targets.values():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
                module.get_parameter("weight").requires_grad_(True)
        for module in targets.values() if self.bias_bits else ():
            if isinstance(module.bias, torch.nn.Parameter):
                module.bias.data.copy_(round_mantissa(module.bias.data, self.bias_bits))
        context.record(
            {f"{name}.table": table.get_parameter("table").detach() for name, table in tables.items()}
        )
        return model

    def _nearest(self, targets: Mapping[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
        """Layer by layer, from the weights alone."""
        return {
            name: _shared(*kmeans(m.get_parameter("weight").detach(), self._count(name), self.bias))
            for name, m in targets.items()
        }

    def _coded(
        self, model: torch.nn.Module, targets: Mapping[str, torch.nn.Module], context: Context
    ) -> dict[str, torch.nn.Module]:
        """All layers together, by what the loss minds. The biases take up what they can."""
        import torch

        seen = curvature(model, targets, context, self.batches, step=self.NAME)
        weights = {name: m.get_parameter("weight").detach() for name, m in targets.items()}
        counts = {name: self._count(name) for name in targets}
        out = {}
        for name, found in cluster_coded.share(weights, seen, counts, self.bits).items():
            device, bias = weights[name].device, targets[name].bias
            if isinstance(bias, torch.nn.Parameter) and found.shift is not None:
                bias.data += found.shift.to(device)
            out[name] = _shared(found.table.to(device), found.index.to(device))
        return out

    def _count(self, name: str) -> int:
        import fnmatch

        return next((v for p, v in parse_values(self.layers) if fnmatch.fnmatchcase(name, p)), self.values)


def round_mantissa(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest number with ``bits`` bits of mantissa below the leading one (relative error 2^-(bits+1))."""
    import torch

    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)


def parse_values(text: str) -> list[tuple[str, int]]:
    """``"conv1=16,fc*=6"`` to pairs. Raises ``ConfigError``."""
    out = []
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if not name or not value.isdigit() or not 1 <= int(value) <= 4096:
            raise ConfigError(
                f"{item!r} gives no layer a number of values", hint="write NAME=COUNT, e.g. fc1=8"
            )
        out.append((name, int(value)))
    return out


def kmeans(weight: torch.Tensor, count: int, bias: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One-dimensional k-means of the non-zero entries from quantiles of their magnitudes.

    Gives (table [≤ count + 1] with 0 first, index of every weight into it, in the shape of ``weight``).
    """
    import torch

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
    spread = some.var(unbiased=False)
    bits = torch.zeros(len(centres), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        mine = _assign(some, centres, bias * spread * bits)
        members = torch.bincount(mine, minlength=len(centres)).double()
        sums = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, mine, some)
        keep = members > 0
        centres, members = (sums / members.clamp_min(1))[keep], members[keep]
        bits = -torch.log2(members / members.sum())
    index[flat != 0] = _assign(some, centres, bias * spread * bits) + 1
    table = torch.cat([centres.new_zeros(1), centres]).to(weight.dtype)
    return table, index.view(weight.shape)


def _assign(values: torch.Tensor, centres: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    import torch

    out = torch.empty(len(values), dtype=torch.int64)
    for at in range(0, len(values), 1 << 16):
        here = slice(at, at + (1 << 16))
        out[here] = ((values[here, None] - centres) ** 2 + cost).argmin(dim=1)
    return out


def _shared(table: torch.Tensor, index: torch.Tensor) -> torch.nn.Module:
    import torch

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values, where):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(where)
            ctx.count = len(values)
            return values[where]

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (where,) = ctx.saved_tensors
            # bincount is several times quicker than the index_add of the built-in backward.
            sums = torch.bincount(where.flatten(), weights=grad.flatten().double(), minlength=ctx.count)
            sums[0] = 0  # zero stays zero
            return sums.to(grad.dtype), None

    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(table.clone())
            self.register_buffer("index", index)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            del weight
            shared: torch.Tensor = Gather.apply(self.table, self.index)  # type: ignore[no-untyped-call]
            return shared

    return Shared()
