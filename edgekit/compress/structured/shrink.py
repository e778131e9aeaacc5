"""The step ``shrink``: structured pruning that really makes the module and its exported graph smaller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

CRITERIA = ("l2", "l1", "taylor", "bn", "random")
SCOPES = ("global", "layer")


@dataclass(frozen=True, kw_only=True)
class Shrink(Step):
    """Cut channels, features, heads and hidden units that matter least.

    ``macs`` and ``parameters``: the shares that may remain (1: no limit). ``criterion``: ``l2``, ``l1``,
    ``taylor`` (needs a task), ``bn`` or ``random``. ``scope``: ``global`` or ``layer``. ``multiple``: what is
    kept of a layer is a multiple of so many channels. ``most``: largest share of one group to cut. ``leave``:
    layers not to touch, ``"head*,stem*"``. ``widths``: also cut what a layer norm or a softmax counts (the
    width of a transformer), which changes more than setting it to zero would. ``refit``: on ``batches`` of the
    task's data the layers that lost inputs learn to answer as before, by least squares; without a task they
    stay as they were cut. ``rounds``: cut a part, train, cut the next; ``training`` is divided among them.
    """

    NAME: ClassVar[str] = "shrink"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.structured.rounds"

    macs: float = 0.5
    parameters: float = 1.0
    criterion: str = "l2"
    scope: str = "global"
    multiple: int = 8
    most: float = 0.9
    leave: str = ""
    widths: bool = False
    rounds: int = 1
    refit: bool = True
    batches: int = 16
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        choice(self.NAME, "criterion", self.criterion, CRITERIA)
        choice(self.NAME, "scope", self.scope, SCOPES)
        if not (0 < self.macs <= 1 and 0 < self.parameters <= 1 and 0 < self.most < 1):
            raise ConfigError(
                f"shrink to {self.macs} of the MACs and {self.parameters} of the parameters, most {self.most}",
                hint="macs and parameters are shares above 0 up to 1, most is a share between 0 and 1",
            )
        for name in ("multiple", "rounds", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"shrink with {name}={getattr(self, name)}", hint=f"{name} is 1 or more")


STEP = Shrink
