"""The step ``cluster``: few distinct values a layer, trained together.

Han, Mao & Dally, "Deep Compression" (ICLR 2016): one-dimensional k-means over a layer's weights, then the
table is trained by the sum of its members' gradients. Zeros stay zero and take no entry. ``bias`` moves
the boundaries between values towards the rarer one, in the sense of entropy-constrained quantization
(Chou, Lookabaugh & Gray 1989): the cost of a weight is ``(w - c)² + bias · σ² · bits(c)``, because what is
stored in the end is the entropy of the indices, not their width. With ``bits`` the loss itself is weighed against the
coded size, over all layers together (:mod:`edgekit.compress.steps.cluster_coded`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step
from edgekit.compress.steps import patterns
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

MOST_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class Cluster(Step):
    """Let the weights of each linear and convolution layer share ``values`` distinct values besides zero.

    ``layers``: other numbers for single layers, ``"conv1=16,fc*=6"``. ``bias`` ≥ 0 trades precision for
    entropy. ``bits`` > 0 is what a weight may cost when it is coded, tables included, on average over all layers:
    values and assignments are then those of least loss on ``batches`` of the task's training data, ``values`` the most
    that a table may have. ``bias_bits`` > 0 rounds the layers' biases to so many bits of mantissa in the end: in a
    small net they are a quarter of the file. Training moves the tables and the layers' biases, never the assignment.
    """

    NAME: ClassVar[str] = "cluster"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.cluster_tables"

    values: int = 15
    layers: str = ""
    bias: float = 0.0
    bits: float = 0.0
    batches: int = 8
    bias_bits: int = 0
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 1 <= self.values <= MOST_VALUES or self.bias < 0 or not 0 <= self.bias_bits <= 23:
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


STEP = Cluster


def parse_values(text: str) -> list[tuple[str, int]]:
    """``"conv1=16,fc*=6"`` to pairs. Raises ``ConfigError``."""

    def count(value: str) -> int:
        if not value.isdigit() or not 1 <= int(value) <= MOST_VALUES:
            raise ValueError(value)
        return int(value)

    return patterns.rules(text, count, what="a number of values", hint="write NAME=COUNT, e.g. fc1=8")
