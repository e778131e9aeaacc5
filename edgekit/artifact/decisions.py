"""What an output decides at each step of a stream, and how often an artifact decides the same as the source.

An output does not say what it is. It is judged where its values can hardly be anything else: probabilities of classes,
scores from 0 to 1, logits. What is a signal decides nothing, and would be refused for values that only happen to be
near a threshold; so several numbers that might be either have to be sure of themselves, as what decides is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.types import Array

DECISION = 0.5
"""From where on a score between 0 and 1 says yes."""

_SUM = 1e-3
"""What probabilities may be from 1 in sum."""
_MOST = 100
"""More numbers that are no probabilities are a spectrum or a signal, and no scores."""
_MIDDLE = (0.2, 0.8)
"""A score between them is not sure. Of gains of a spectrum a third and more are; of scores that were trained few."""
_UNSURE = 0.2
_SURE = 1.0
"""A logit, or the distance of the highest from the next, from which the answer is sure to 73 %."""


@dataclass
class Decisions:
    """Of one output, over all steps: what its values look like, and how many would be equal by each reading."""

    unit: bool = True
    distribution: bool = True
    negative: bool = False
    positive: bool = False
    rows: int = 0
    values: int = 0
    most: int = 0
    middle: int = 0
    sure: int = 0
    distances: int = 0
    plain: bool = True
    equal: dict[str, int] = field(default_factory=lambda: {"highest": 0, "half": 0, "sign": 0})

    def add(self, reference: Array, output: Array) -> None:
        """One step's values: ``reference`` from the source."""
        rows = reference.reshape(-1, reference.shape[-1] if reference.ndim else 1)
        got = output.reshape(rows.shape)
        self.unit &= bool(((rows >= 0) & (rows <= 1)).all())
        self.distribution &= rows.shape[1] > 1 and _sums_to_one(rows)
        self.negative |= bool((rows < 0).any())
        self.positive |= bool((rows > 0).any())
        self.rows, self.values = self.rows + len(rows), self.values + rows.size
        self.most = max(self.most, rows.size)
        self.plain &= reference.ndim <= 2 or len(rows) == 1
        self.middle += int(((rows > _MIDDLE[0]) & (rows < _MIDDLE[1])).sum())
        self.sure += int((np.abs(rows) >= _SURE).sum())
        self.equal["half"] += int(((rows >= DECISION) == (got >= DECISION)).sum())
        self.equal["sign"] += int(((rows > 0) == (got > 0)).sum())
        if rows.shape[1] > 1:
            best = np.partition(rows, -2, axis=1)[:, -2:]
            self.distances += int((best[:, 1] - best[:, 0] >= _SURE).sum())
            self.equal["highest"] += int((rows.argmax(axis=1) == got.argmax(axis=1)).sum())

    def counted(self) -> tuple[int, int] | None:
        """How many decisions are equal, and of how many; ``None`` where the output decides nothing."""
        reading = self._reading()
        if reading is None:
            return None
        return self.equal[reading], self.rows if reading == "highest" else self.values

    def _reading(self) -> str | None:
        one = self.values == self.rows
        if self.distribution:
            return "highest"
        if self.unit:
            alone = one and self.plain
            return "half" if alone or self._surely(self.values - self.middle, 1 - _UNSURE) else None
        if one:
            logit = self.most == 1 and self.negative and self.positive
            return "sign" if logit and self._surely(self.sure, 0.5) else None
        if not self.negative or self.values > _MOST * self.rows:
            return None
        return "highest" if self.plain or 2 * self.distances >= self.rows else None

    def _surely(self, sure: int, share: float) -> bool:
        return self.most <= _MOST and sure >= share * self.values


def _sums_to_one(rows: Array) -> bool:
    """Probabilities, or their logarithms."""
    if rows.min() >= 0:
        return bool(np.allclose(rows.sum(axis=1), 1, atol=_SUM))
    return bool(rows.max() <= _SUM and np.allclose(np.exp(rows).sum(axis=1), 1, atol=_SUM))
