"""Modules of a quantized network: while its steps are learnt, and after.

Learned step size quantization (LSQ): Esser et al., "Learned Step Size Quantization" (ICLR 2020,
arXiv 1902.08153). A step is kept as its change relative to where it started, so that weight decay pulls it back
there and one learning rate suits every magnitude: Adam changes it by the rate, SGD as the paper does.

After training a layer holds integers and scales; its weight is what they stand for, computed anew at each use.
When it is exported, both weights and activations become ONNX's own QuantizeLinear and DequantizeLinear, on the
integers themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

INPUT = "input_quantizer"
"""The submodule of a layer that quantizes what the layer reads."""

_ONNX_INT4 = 22
_LEAST = 0.01  # of its first value: a step never falls below


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Integers that a tensor may take, as distances from its zero point."""

    low: int
    high: int

    @classmethod
    def of_weight(cls, bits: int) -> Levels:
        """Symmetric: what every runtime takes, and a change of sign (batch norm) stays inside."""
        top = (1 << (bits - 1)) - 1
        return cls(low=-top, high=top)

    @classmethod
    def of_activation(cls, dtype: torch.dtype, zero_point: int) -> Levels:
        """All that an integer type holds."""
        limits = torch.iinfo(dtype)
        return cls(low=limits.min - zero_point, high=limits.max - zero_point)


class _Lsq(torch.autograd.Function):
    """``round(clamp(x / step)) * step``: the gradient passes where nothing is clipped; that of the step is the
    paper's (equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, levels: Levels, factor: float) -> torch.Tensor:
        ctx.save_for_backward(x, step)
        ctx.levels, ctx.factor = levels, factor
        out = (x.float() / step).round_().clamp_(levels.low, levels.high).mul_(step)
        return out.to(x.dtype)

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, step = ctx.saved_tensors
        gradient, levels = gradients[0], ctx.levels
        scaled = x.float() / step  # in half precision, 255 levels would not be told apart
        inside = (scaled >= levels.low) & (scaled <= levels.high)
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            rounded = scaled.round().clamp_(levels.low, levels.high)
            slope = rounded.sub_(scaled.mul_(inside)).mul_(gradient)
            to_step = slope.sum_to_size(step.shape).to(step.dtype) * ctx.factor
        return to_x, to_step, None, None


def quantized(
    x: torch.Tensor, step: torch.Tensor, levels: Levels, *, features: int | None = None
) -> torch.Tensor:
    """``x`` on the grid of ``step`` (broadcast against it), with straight-through gradients.

    ``features``: how many values share a step, by which the step's gradient is divided as in the paper.
    """
    factor = 1.0 if features is None else 1.0 / math.sqrt(max(1, features) * levels.high)
    out: torch.Tensor = _Lsq.apply(x, step, levels, factor)  # type: ignore[no-untyped-call]
    return out


class _Step(nn.Module):
    """A learnable positive step. SGD moves it as it would move the step itself; see the head of the file."""

    start: torch.Tensor

    def __init__(self, start: torch.Tensor, *, learned: bool) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.change = nn.Parameter(torch.zeros_like(start), requires_grad=learned)

    def forward(self) -> torch.Tensor:
        """The step."""
        relative: torch.Tensor = _Relative.apply(self.change, self.start)  # type: ignore[no-untyped-call]
        return relative


class _Relative(torch.autograd.Function):
    """``start * (1 + change)``. The gradient of ``change`` is divided by ``start`` where the chain rule would
    multiply: a step of SGD on it then is one on the step itself, as LSQ's gradient scale supposes."""

    @staticmethod
    def forward(ctx: Any, change: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(start)
        return start * (1 + change).clamp_min(_LEAST)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] / ctx.saved_tensors[0], None


class LearnedWeight(nn.Module):
    """A parametrization: the weight on a grid whose steps are learnt. ``axis`` has a step for each entry, or
    ``None`` for one in all. What is true in ``zeros`` stays zero (pruned weights)."""

    zeros: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bits: int,
        axis: int | None,
        *,
        learned: bool,
        zeros: torch.Tensor | None,
    ):
        super().__init__()
        self.bits, self.axis = bits, axis
        self.step = _Step(spread(scale, axis, weight.dim()), learned=learned)
        some = zeros is not None and bool(zeros.any())
        self.register_buffer("zeros", zeros if some else torch.zeros(0, dtype=torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """What the layer computes with."""
        step = self.step()
        stepped = quantized(
            weight, step, Levels.of_weight(self.bits), features=weight.numel() // step.numel()
        )
        return stepped.masked_fill(self.zeros, 0.0) if self.zeros.numel() else stepped

    def integers(self, weight: torch.Tensor) -> Integers:
        """The same for good, from the weight that was learnt."""
        with torch.no_grad():
            step = self.step()
            levels = Levels.of_weight(self.bits)
            values = (weight / step).round_().clamp_(levels.low, levels.high).to(torch.int8)
            if self.zeros.numel():
                values.masked_fill_(self.zeros, 0)
            scale = step.flatten() if self.axis is not None else step.reshape(())
        return Integers(values, scale.clone(), self.bits, self.axis)


class Integers(nn.Module):
    """A parametrization: the weight from integers (int8, also where ``bits`` is less) and scales."""

    def __init__(self, values: torch.Tensor, scale: torch.Tensor, bits: int, axis: int | None) -> None:
        super().__init__()
        self.bits, self.axis = bits, axis
        self.onnx_opset = 21 if bits <= 4 else 0
        self._first = (values, scale)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What takes the place of the weight when this is registered."""
        del weight
        first, self._first = self._first, (torch.empty(0), torch.empty(0))
        return first

    def forward(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The weight."""
        if not torch.onnx.is_in_onnx_export():
            return values.to(scale.dtype) * spread(scale, self.axis, values.dim())
        if self.bits <= 4:
            values = _onnx("Cast", [values], {"to": _ONNX_INT4}, _ONNX_INT4)
        attributes = {} if self.axis is None else {"axis": self.axis}
        return _onnx("DequantizeLinear", [values, scale], attributes, scale.dtype)


class LearnedInput(nn.Module):
    """What a layer reads, on a grid whose step is learnt; its zero point stays where calibration put it."""

    def __init__(self, scale: float, zero_point: int, dtype: torch.dtype, *, learned: bool) -> None:
        super().__init__()
        self.zero_point, self.dtype = zero_point, dtype
        self.step = _Step(torch.tensor(scale), learned=learned)
        self._settled: list[Input] = []  # in a list, so that it is no submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as its integers stand for it."""
        features = x[0].numel() if x.dim() > 1 else x.numel()
        return quantized(x, self.step(), Levels.of_activation(self.dtype, self.zero_point), features=features)

    def settled(self) -> Input:
        """The same for good; the same object for all layers that share this one."""
        if not self._settled:
            quantizer = Input(self.dtype)
            with torch.no_grad():
                quantizer.scale.copy_(self.step())
                quantizer.zero_point.fill_(self.zero_point)
            self._settled.append(quantizer.to(self.step.start.device))
        return self._settled[0]


class Input(nn.Module):
    """What a layer reads, quantized: ``scale`` and ``zero_point`` are scalars, the latter in the type of the
    integers."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=dtype))
        self.onnx_opset = 21 if dtype == torch.int16 else 0
        self._opened: list[LearnedInput] = []  # in a list, so that it is no submodule

    def opened(self, *, learned: bool) -> LearnedInput:
        """One whose step can be trained further; the same object for all layers that share this one."""
        if not self._opened:
            scale, zero_point = float(self.scale), int(self.zero_point)
            opened = LearnedInput(scale, zero_point, self.zero_point.dtype, learned=learned)
            self._opened.append(opened.to(self.scale.device))
        return self._opened[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as its integers stand for it. Rounds half to even, as ONNX does."""
        if torch.onnx.is_in_onnx_export():
            zero = self.zero_point
            stored = _onnx("QuantizeLinear", [x, self.scale, zero], {}, zero.dtype)
            return _onnx("DequantizeLinear", [stored, self.scale, zero], {}, x.dtype)
        return quantized(x, self.scale, Levels.of_activation(self.zero_point.dtype, int(self.zero_point)))


def _onnx(
    op: str, inputs: list[torch.Tensor], attributes: dict[str, int], dtype: torch.dtype | int
) -> torch.Tensor:
    """The ONNX operator itself, in the graph that is being exported; its result has the first input's shape."""
    shape = inputs[0].shape
    result: torch.Tensor = torch.onnx.ops.symbolic(op, inputs, {**attributes}, dtype=dtype, shape=shape)
    return result


def spread(scale: torch.Tensor, axis: int | None, rank: int) -> torch.Tensor:
    """Scales ``[channels]`` shaped to go along ``axis``; one scale as a scalar."""
    if axis is None:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def channel_axis(module: nn.Module) -> int | None:
    """The weight's output channels; ``None`` where a scale a channel has no form (grouped transposed ones)."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0


def read_input(
    module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """A pre-hook: quantize what the layer reads. Of the module, not of a closure, so that copies have their own."""
    quantizer = module.get_submodule(INPUT)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: quantizer(kwargs[name])}


def attach(module: nn.Module, quantizer: nn.Module) -> None:
    """Let ``module`` read through ``quantizer``; in the place of the one it has."""
    if not hasattr(module, INPUT):
        module.register_forward_pre_hook(read_input, with_kwargs=True)
    module.add_module(INPUT, quantizer)


def store(module: nn.Module, integers: Integers) -> None:
    """Put integers in the place of a layer's weight."""
    module.get_parameter("weight").requires_grad_(False)
    parametrize.register_parametrization(module, "weight", integers)
