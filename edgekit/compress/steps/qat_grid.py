"""Integer weights as a constraint: opened for every training after ``qat``, settled as integers again behind it.

A training step moves weights by less than a step of the grid. So while anything trains, a layer has float weights that
start at what its integers stand for and are rounded in each forward pass, as in ``qat`` itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.utils import parametrize

from edgekit.compress import constraints
from edgekit.compress.constraints import Constraint
from edgekit.compress.steps.qat_layers import (
    INPUT,
    Input,
    Integers,
    LearnedInput,
    LearnedWeight,
    attach,
    store,
)

_PARAMETRIZATION = "parametrizations.weight.0"


@dataclass(frozen=True)
class Grid(Constraint):
    """Integers of so many bits times a scale; ``learned``: whether scales, and those of inputs, are trained."""

    WHAT: ClassVar[str] = "integers"
    CHOSEN: ClassVar[bool] = True

    learned: bool

    def open(self, layer: nn.Module) -> None:
        """Float weights on the grid in place of the integers."""
        integers = integers_of(layer)
        scale = layer.get_parameter("parametrizations.weight.original1").detach().clone()
        # Copies of a layer share its class, of which the next line takes the weight's property away.
        kind = type(layer)
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        weight = layer._buffers.pop("weight", None)
        if weight is None:  # it was a parameter where the scales could be trained
            weight = layer._parameters.pop("weight")
        assert weight is not None
        layer.register_parameter("weight", nn.Parameter(weight.detach().clone()))
        zeros = constraints.zeros(layer)
        learnt = LearnedWeight(
            layer.get_parameter("weight").detach(), scale, integers.bits, integers.axis,
            learned=self.learned, zeros=None if zeros is None else zeros.to(scale.device),
        )  # fmt: skip
        parametrize.register_parametrization(layer, "weight", learnt)
        reading = getattr(layer, INPUT, None)
        if isinstance(reading, Input):
            attach(layer, reading.opened(learned=self.learned))

    def close(self, layer: nn.Module) -> None:
        """The integers that the weights are rounded to now."""
        settle(layer)

    def holds(self, layer: nn.Module) -> bool:
        """Whether it has integers."""
        return parametrize.is_parametrized(layer, "weight") and isinstance(
            layer.get_submodule(_PARAMETRIZATION), Integers
        )


def settle(layer: nn.Module) -> None:
    """What a layer learnt, as integers and scales for good."""
    learnt = layer.get_submodule(_PARAMETRIZATION)
    assert isinstance(learnt, LearnedWeight)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    store(layer, learnt.integers(layer.get_parameter("weight").detach()))
    reading = getattr(layer, INPUT, None)
    if isinstance(reading, LearnedInput):
        attach(layer, reading.settled())


def integers_of(layer: nn.Module) -> Integers:
    """What the weight of a quantized layer is computed from."""
    integers = layer.get_submodule(_PARAMETRIZATION)
    assert isinstance(integers, Integers)
    return integers
