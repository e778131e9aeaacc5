"""The step ``distill``: a student learns from a teacher's outputs, inner states and relations beside the labels.

Which parts count is a matter of weights, all of them options of :class:`Distill`:

- ``soft``: Kullback-Leibler divergence to the teacher's scores at a temperature, times its square (Hinton,
  Vinyals & Dean, "Distilling the knowledge in a neural network", 2015); for outputs that are no scores
  (``kind="values"``) the mean squared error.
- ``hard``: cross entropy to the class that the teacher takes.
- ``labels``: the task's own loss.
- ``features``, ``attention``: inner states (:mod:`edgekit.compress.steps.distill_states`).
- ``relations``: distances and angles between the samples of a batch (Park et al., "Relational knowledge
  distillation", CVPR 2019).
- ``confidence``: a penalty on certain outputs (Pereyra et al. 2017), which regularises a small student.

Where there is no data (``data="synthetic"``) inputs are made from the teacher itself
(:mod:`edgekit.compress.steps.distill_synthetic`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.training.settings import KINDS, Training
from edgekit.errors import ConfigError

DATA = ("task", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Distill(Step):
    """Train a student to do as its teacher does.

    ``teacher``: a SOURCE whose factory gives the teacher; without it the model as it was before the recipe's
    first step. ``student``: a SOURCE whose factory gives another network; without it the model as the steps
    before left it (pruned, with fewer layers …). ``pairs``: modules whose outputs are matched,
    ``"student.name=teacher.name,…"``; without it blocks of the longest stack in both, spread evenly.
    ``output``: the output to match where there are several. ``synthetic``: how many inputs to make where
    ``data="synthetic"``.
    """

    NAME: ClassVar[str] = "distill"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.distill_lessons"
    NEEDS_ORIGINAL: ClassVar[bool] = True
    SOURCES: ClassVar[tuple[str, ...]] = ("teacher", "student")

    teacher: str = ""
    student: str = ""
    soft: float = 0.9
    temperature: float = 2.0
    hard: float = 0.0
    labels: float = 0.1
    features: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    confidence: float = 0.0
    pairs: str = ""
    kind: str = "scores"
    output: str = ""
    data: str = "task"
    synthetic: int = 256
    training: Training = field(default_factory=lambda: Training(epochs=1.0))

    def __post_init__(self) -> None:
        weights = (self.soft, self.hard, self.labels, self.features, self.attention, self.relations)
        if min(*weights, self.confidence) < 0 or not any(weights) or self.temperature <= 0:
            raise ConfigError(
                f"distill with the weights {weights} and temperature {self.temperature}",
                hint="weights must not be negative, one of them must be positive, as must the temperature",
            )
        if self.training.teacher:
            raise ConfigError(
                "distill has a teacher itself", hint="use soft and labels, not training.teacher"
            )
        choice(self.NAME, "kind", self.kind, KINDS)
        choice(self.NAME, "data", self.data, DATA)
        if self.kind == "values" and (self.hard or self.confidence):
            raise ConfigError("values have no classes", hint="set hard=0 and confidence=0, or kind=scores")

    @property
    def starts_anew(self) -> bool:
        """With a student of its own."""
        return bool(self.student)


STEP = Distill
