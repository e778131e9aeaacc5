"""Where steps start: the range of what each layer reads, from data, and of each channel of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from edgekit.compress.hooks import first_input, removed
from edgekit.compress.step import Tensors
from edgekit.compress.steps.qat_layers import Levels, spread
from edgekit.errors import DataError
from edgekit.quantize.calibrate import ranges
from edgekit.quantize.calibrate.histogram import Histogram

_VALUES = 1 << 16  # of a tensor that are counted, a batch
_CLIPS = 40  # fractions of a channel's largest weight that are tried


def shared_inputs(
    model: nn.Module, layers: Iterable[str], run: Callable[[nn.Module], object]
) -> dict[str, int]:
    """The number of the input that a layer reads. Layers that read the very same tensor have the same number, as
    have all the inputs of a layer that is called several times; layers that were not called have none."""
    names = {model.get_submodule(n): n for n in layers}
    alive: list[torch.Tensor] = []  # as long as a tensor lives, no other has its id
    group: dict[str, set[str]] = {}
    readers: dict[int, str] = {}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Tensors) -> None:
        x, name = first_input(args, kwargs), names[module]
        alive.append(x)
        own = group.setdefault(name, {name})
        other = group[readers.setdefault(id(x), name)]
        if other is not own:
            other |= own
            group.update(dict.fromkeys(own, other))

    with removed([m.register_forward_pre_hook(hook, with_kwargs=True) for m in names]):
        run(model)
    numbers: dict[int, int] = {}
    return {n: numbers.setdefault(id(group[n]), len(numbers)) for n in names.values() if n in group}


@dataclass
class InputStatistics:
    """What one input was on the calibration batches."""

    low: float = 0.0
    high: float = 0.0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, x: torch.Tensor) -> None:
        """Look at one tensor. Raises ``DataError`` for one that is not finite."""
        x = x.detach().float()
        low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise DataError(
                "a layer reads values that are not finite on the calibration batches",
                hint="the float model itself overflows; leave the layer out (layers=NAME=0)",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.flatten()
        self.histogram.add(flat[:: max(1, flat.numel() // _VALUES) | 1].cpu().numpy())

    def range(self, method: str, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """``(low, high)``, zero included; 16 bits are enough for all that was seen."""
        low, high = self.low, self.high
        if method == "mse" and bits < 16:
            low, high = ranges.mean_squared_error(self.histogram, low, high, bits=bits, symmetric=symmetric)
        elif method == "percentile" and bits < 16:
            low, high = ranges.percentile(self.histogram, 99.99)
        return max(low, self.low) if not symmetric else low, min(high, self.high) if not symmetric else high


def observe(
    model: nn.Module, numbers: Mapping[str, int], run: Callable[[nn.Module], object]
) -> dict[int, InputStatistics]:
    """The statistics of every input while ``run`` runs the model, by its number."""
    statistics = {number: InputStatistics() for number in numbers.values()}
    layers = {model.get_submodule(name): number for name, number in numbers.items()}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Tensors) -> None:
        statistics[layers[module]].add(first_input(args, kwargs))

    with removed([m.register_forward_pre_hook(hook, with_kwargs=True) for m in layers]):
        run(model)
    return statistics


def weight_scale(weight: torch.Tensor, axis: int | None, bits: int, method: str) -> torch.Tensor:
    """The step of each channel ``[channels]``, or one: from the largest weight, or of least squared error."""
    top = Levels.of_weight(bits).high
    others = [i for i in range(weight.dim()) if i != axis]
    reach = weight.abs().amax(others) if axis is not None else weight.abs().amax()
    largest = torch.where(reach > 1e-30, reach / top, torch.ones_like(reach))
    if method == "minmax":
        return largest
    best, least = largest, torch.full_like(largest, torch.inf)
    for clip in torch.linspace(1.0, 0.25, _CLIPS).tolist():
        scale = largest * clip
        step = spread(scale, axis, weight.dim())
        error = ((weight / step).round_().clamp_(-top, top).mul_(step) - weight).square_()
        cost = error.sum(others) if axis is not None else error.sum()
        best = torch.where(cost < least, scale, best)
        least = torch.minimum(cost, least)
    return best
