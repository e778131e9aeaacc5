"""The step ``depth``: whole layers out of a stack (transformer blocks, residual blocks).

A layer can go if what it returns has the shape of what it takes. Which ones matter least says either how little
they turn their input (block influence, ``1 - cos(in, out)``; Men et al., "ShortGPT", 2024) or the task's metric
without each of them. A removed layer becomes a module that passes its input on, so that the names of the others
stay; nothing of it is exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

CRITERIA = ("similarity", "metric")


@dataclass(frozen=True, kw_only=True)
class Depth(Step):
    """Take the ``share`` of the layers out that matter least.

    ``criterion``: ``similarity`` (of a layer's input and output, over the task's batches where there is a
    task) or ``metric`` (one evaluation of the task for each layer and each removal). ``leave``: layers to keep,
    ``"encoder.layer.0,encoder.layer.5"``.
    """

    NAME: ClassVar[str] = "depth"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.structured.blocks"

    share: float = 0.25
    criterion: str = "similarity"
    leave: str = ""
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"depth with share {self.share}", hint="the share is between 0 and 1")
        choice(self.NAME, "criterion", self.criterion, CRITERIA)


STEP = Depth
