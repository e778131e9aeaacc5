"""The step ``prune``: single weights, blocks of them, or N of every M set to zero, at once or while training goes on.

The gradual schedule is that of Zhu & Gupta, "To prune, or not to prune" (2017): the sparsity rises as
``1 - (1 - t)³``. The iterative one cuts and trains in rounds (Han et al., 2015). The global threshold compares
weights of all layers, each divided by its layer's root mean square when ``normalize`` is set (a cheap form of LAMP,
Lee et al. 2021). Criteria are in :mod:`edgekit.compress.steps.saliency`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.steps import patterns
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

CRITERIA = ("magnitude", "wanda", "taylor", "snip", "movement", "random")
SCOPES = ("global", "layer")
SCHEDULES = ("auto", "gradual", "iterative", "one-shot")


@dataclass(frozen=True, kw_only=True)
class Prune(Step):
    """Set the least important weights of linear and convolution layers to zero.

    ``sparsity``: share of zeros in the pruned layers together (``scope="global"``) or in each
    (``"layer"``). ``layers``: sparsities of single layers, ``"fc1=0.97,head*=0.5"``, instead. ``ramp``:
    the share of the training in which the sparsity rises; the rest trains what is left. Without
    training everything is cut at once. ``criterion``: ``magnitude``, ``wanda``, ``taylor``, ``snip``,
    ``movement`` or ``random``. ``schedule``: ``gradual``, ``iterative`` (``rounds`` times cut and train) or
    ``one-shot`` (cut, then train). ``block`` > 1: neighbouring inputs are cut together, by their L2 norm.
    ``pattern``: ``"2:4"`` keeps 2 of every 4 input channels of each output, whatever ``sparsity`` says; layers whose
    inputs are no multiple of 4 stay dense. ``refit``: without training, the weights that stay make up for those that
    go, by least squares on ``batches`` of the task's data, and batch norms move with what they read; without a task
    nothing does.
    """

    NAME: ClassVar[str] = "prune"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.prune_masks"

    sparsity: float = 0.5
    scope: str = "global"
    layers: str = ""
    ramp: float = 0.6
    normalize: bool = False
    criterion: str = "magnitude"
    schedule: str = "auto"
    rounds: int = 5
    block: int = 1
    pattern: str = ""
    refit: bool = True
    batches: int = 8
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1 or not 0 <= self.ramp <= 1:
            raise ConfigError(
                f"prune with sparsity {self.sparsity} and ramp {self.ramp}",
                hint="the sparsity is a share from 0 to below 1, the ramp a share from 0 to 1",
            )
        choice(self.NAME, "scope", self.scope, SCOPES)
        choice(self.NAME, "criterion", self.criterion, CRITERIA)
        choice(self.NAME, "schedule", self.schedule, SCHEDULES)
        if self.rounds < 1 or self.block < 1 or self.batches < 1:
            raise ConfigError(
                f"prune with {self.rounds} rounds, blocks of {self.block} and {self.batches} batches",
                hint="all are 1 or more",
            )
        if self.criterion == "movement" and (not self.training.epochs or self.schedule == "one-shot"):
            raise ConfigError(
                "movement is what training does to the weights, and nothing has moved before it",
                hint="let it train (training.epochs=3, schedule=gradual), or use criterion=magnitude",
            )
        parse_layers(self.layers)
        parse_pattern(self.pattern)


STEP = Prune


def parse_pattern(text: str) -> tuple[int, int]:
    """``"2:4"`` to (2, 4); empty to (1, 1). Raises ``ConfigError``."""
    keep, colon, of = (text or "1:1").partition(":")
    if not (colon and keep.isdigit() and of.isdigit() and 0 < int(keep) <= int(of) <= 64):
        raise ConfigError(f"{text!r} is no pattern", hint="write KEEP:OF, for example 2:4")
    return int(keep), int(of)


def parse_layers(text: str) -> list[tuple[str, float]]:
    """``"fc1=0.97,head*=0.5"`` to pairs. Raises ``ConfigError``."""

    def share(value: str) -> float:
        number = float(value)
        if not 0 <= number < 1:
            raise ValueError(value)
        return number

    return patterns.rules(text, share, what="a sparsity", hint="write NAME=SHARE, for example fc1=0.9")
