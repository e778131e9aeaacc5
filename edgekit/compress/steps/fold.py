"""The step ``fold``: batch normalization into the weights before it.

Every target's export does this anyway. A step that chooses the weights' values has to come after it: few values times
a factor for each channel are many values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgekit.compress.step import Step


@dataclass(frozen=True, kw_only=True)
class Fold(Step):
    """Fold each batch norm that reads what one linear or convolution layer wrote. Nothing is lost; a model without
    such stays as it is."""

    NAME: ClassVar[str] = "fold"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.batch_norm"


STEP = Fold
