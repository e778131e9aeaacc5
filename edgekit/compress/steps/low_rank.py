"""Low rank: layers become two or three thin ones.

Linear layers and 1×1 convolutions by singular values, other convolutions by singular values of their unfolded
kernel (Zhang et al., "Accelerating very deep convolutional networks", 2016), by Tucker-2 (Kim et al., 2016) or by
CP (Lebedev et al., 2015); embeddings by singular values.

What counts is the error of the *outputs*, not of the weights: with ``aware`` the weights are whitened by the
covariance of the layer's inputs before they are cut (what SVD-LLM calls truncation-aware, Wang et al. 2024),
the biases take up the change of the mean, and rows of embeddings count as often as their token occurs. Plain
singular values collapse on transformers; these do not.

Ranks follow from an energy to keep, or from a budget of parameters: then a Lagrange multiplier is sought at
which the cheapest ranks, layer by layer, of ``lost energy + λ · parameters`` meet it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress.steps.low_rank_factors import Cut, Seen, cuttable, factor, hollow, seen
from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

CONVOLUTIONS = ("svd", "tucker", "cp", "none")


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Factor linear, convolution and embedding layers.

    ``parameters``: the share of all the model's parameters to keep (1 leaves the choice to ``energy``, the
    share of each layer's output energy to keep). ``layers``: patterns of the layers to factor, ``"*ffn*,head"``.
    ``convolutions``: how those larger than 1 × 1 are factored. ``embeddings``: whether they are.
    ``aware``: weigh by ``batches`` of the task's data. ``multiple``: ranks are multiples of it.
    """

    NAME: ClassVar[str] = "low-rank"

    parameters: float = 1.0
    energy: float = 0.95
    layers: str = ""
    convolutions: str = "svd"
    embeddings: bool = True
    aware: bool = True
    batches: int = 16
    multiple: int = 8
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 < self.parameters <= 1 or not 0 < self.energy <= 1 or self.batches < 1 or self.multiple < 1:
            raise ConfigError(
                f"low-rank with parameters={self.parameters}, energy={self.energy}, batches={self.batches}",
                hint="parameters and energy are shares above 0 and at most 1; batches and multiple at least 1",
            )
        if self.convolutions not in CONVOLUTIONS:
            raise ConfigError(
                f"unknown factors {self.convolutions!r}", hint=f"convolutions={', '.join(CONVOLUTIONS)}"
            )

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Factor in place and return ``model``.

        Raises ``SourceError`` if there is nothing to factor, ``ConfigError`` for a budget below what ranks
        of ``multiple`` take, ``UsageError`` if it is ``aware`` and there is no task.
        """
        import torch

        targets = self._targets(model)
        if self.aware:
            observed = seen(model, targets, context, self.batches, step=self.NAME)
        else:
            observed = {name: Seen() for name in targets}
        cuts = {
            name: factor(m, observed[name], method=self._method(m), multiple=self.multiple)
            for name, m in targets.items()
        }
        whole = sum(p.numel() for p in model.parameters())
        chosen = budgeted(list(cuts.values()), whole, self.parameters) if self.parameters < 1 else ()
        ranks = chosen or [c.rank_for(self.energy) for c in cuts.values()]
        for (name, cut), rank in zip(cuts.items(), ranks, strict=True):
            if rank:
                _replace(model, name, cut.build(rank))
        context.record({name: torch.tensor(r) for (name, _), r in zip(cuts.items(), ranks, strict=True) if r})
        if self.training.epochs:
            fit(model, context.needs_task(self.NAME), self.training, seed=context.seed)
        return model.eval()

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The structure with the recorded ranks; weights are still to come."""
        for name, rank in tensors.items():
            module = model.get_submodule(name)
            _replace(model, name, hollow(module, int(rank), self._method(module)))
        return model

    def _targets(self, model: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Layers that can be factored and are asked for."""
        found = cuttable(model, embeddings=self.embeddings, convolutions=self.convolutions != "none")
        patterns = [p for p in self.layers.split(",") if p]
        for pattern in patterns:
            if not fnmatch.filter(found, pattern):
                raise ConfigError(
                    f"no layer that can be factored is called {pattern!r}",
                    hint=f"layers: {', '.join(found) or 'none'}",
                )
        if patterns:
            found = {n: m for n, m in found.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
        if not found:
            raise SourceError("the model has no layer to factor", hint="leave this step out")
        return found

    def _method(self, module: torch.nn.Module) -> str:
        size = getattr(module, "kernel_size", ())
        return self.convolutions if any(k > 1 for k in size) else "svd"


def budgeted(cuts: Sequence[Cut], whole: int, share: float) -> list[int]:
    """A rank for each layer (0: leave it) so that ``share`` of ``whole`` parameters remain, by the Lagrangian.

    Raises ``ConfigError`` if even the smallest ranks keep more.
    """
    fixed = whole - sum(c.parameters for c in cuts)
    room = share * whole - fixed

    def choice(price: float) -> tuple[list[int], int]:
        ranks = [c.cheapest(price) for c in cuts]
        return ranks, sum(c.size(r) for c, r in zip(cuts, ranks, strict=True))

    low, high = 0.0, 1e-12
    while choice(high)[1] > room:
        high *= 4
        if high > 1e6:
            least = (fixed + choice(high)[1]) / whole
            raise ConfigError(
                f"{share:.0%} of the parameters cannot be reached by low rank: the least is {least:.0%}",
                hint="raise parameters, or prune first",
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if choice(middle)[1] > room else (low, middle)
    return _filled(cuts, choice(high)[0], room)


def _filled(cuts: Sequence[Cut], ranks: list[int], room: float) -> list[int]:
    """Spend what the multiplier leaves over: raise the rank that gains the most energy a parameter, while it fits."""
    left = room - sum(c.size(r) for c, r in zip(cuts, ranks, strict=True))
    while True:
        best, gain = None, 0.0
        for i, (cut, rank) in enumerate(zip(cuts, ranks, strict=True)):
            higher = cut.next(rank)
            cost = cut.size(higher) - cut.size(rank)
            if higher != rank and cost <= left and (cut.lost(rank) - cut.lost(higher)) / max(1, cost) > gain:
                best, gain = (i, higher, cost), (cut.lost(rank) - cut.lost(higher)) / max(1, cost)
        if best is None:
            return ranks
        i, higher, cost = best
        ranks[i], left = higher, left - cost


def _replace(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    owner.register_module(last, module)  # numbered children of containers are registered by number, too
