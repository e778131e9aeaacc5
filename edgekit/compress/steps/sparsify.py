"""The step ``sparsify``: training that drives weights, or whole channels, towards zero before they are cut.

``l1`` is the lasso on single weights. ``group`` is the group lasso ``λ Σ √n ‖w_g‖₂`` over output channels (Yuan & Lin
2006; Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016), ``scale`` the lasso on the
scales of batch norms (Liu et al., "Network Slimming", 2017). Nothing is cut here: ``prune`` or ``shrink`` come next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sparsify(Step):
    """Train with penalties on weights (``l1``), output channels (``group``) and batch norm scales (``scale``)."""

    NAME: ClassVar[str] = "sparsify"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.sparsify_penalty"

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


STEP = Sparsify
