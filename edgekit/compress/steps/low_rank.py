"""The step ``low-rank``: layers become two or three thin ones.

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

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

CONVOLUTIONS = ("svd", "tucker", "cp", "none")


@dataclass(frozen=True, kw_only=True)
class LowRank(Step):
    """Factor linear, convolution and embedding layers.

    ``parameters``: the share of all the model's parameters to keep (1 leaves the choice to ``energy``, the
    share of each layer's output energy to keep). ``layers``: patterns of the layers to factor, ``"*ffn*,head"``.
    ``convolutions``: how those larger than 1 × 1 are factored. ``embeddings``: whether they are.
    ``aware``: weigh by ``batches`` of the task's data. ``multiple``: ranks are multiples of it.
    """

    NAME: ClassVar[str] = "low-rank"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.low_rank_ranks"

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
        choice(self.NAME, "convolutions", self.convolutions, CONVOLUTIONS)


STEP = LowRank
