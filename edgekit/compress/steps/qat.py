"""Quantization-aware training: the network learns with the integers that it will run on.

Weights and what each layer reads are rounded in the forward pass; gradients pass through (Bengio et al. 2013), and
the steps are learnt with the weights (LSQ: Esser et al. 2020, arXiv 1902.08153) or stay where calibration put them.
The result holds integers; exported, it is ONNX with QuantizeLinear and DequantizeLinear, integer weights in the
file, which ``edgekit build`` lowers with the ranges that were trained (:mod:`edgekit.quantize.trained`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress.step import Scalar, forward
from edgekit.compress.steps.prune import prunable
from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

STEPS = ("learned", "fixed")
RANGES = ("mse", "minmax", "percentile")
BATCH_NORM = ("fold", "freeze", "train")


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Of one layer: its weights' (2 to 8) and those of what it reads (8, 16, or 0: float)."""

    weights: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class Qat:
    """Quantize linear and convolution layers, and train them so.

    ``weights``: 2 to 8 bits, symmetric, stored as INT4 or INT8. ``activations``: 8, 16 or 0 (float).
    ``layers``: other bits for single layers, ``"conv1=8,head*=8/16,tail=0"``: of the weights, or weights/activations;
    0 leaves a layer float. ``per_channel``: a step for each output channel, else one a layer. ``symmetric``: zero
    points of 0, as TensorRT wants them. ``steps``: ``learned`` or ``fixed``. ``range``: where steps start: ``mse``,
    ``minmax``, ``percentile`` of the first ``batches`` training batches. ``batch_norm``: ``fold`` into the weights
    before training; or train with it in place, its statistics held (``freeze``) or going on (``train``), and fold it
    into the scales in the end. Without training this is quantization after training.
    """

    NAME: ClassVar[str] = "qat"
    SPACE: ClassVar[Mapping[str, tuple[Scalar, ...]]] = {}

    weights: int = 8
    activations: int = 8
    layers: str = ""
    per_channel: bool = True
    symmetric: bool = False
    steps: str = "learned"
    range: str = "mse"
    batch_norm: str = "fold"
    batches: int = 8
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 2 <= self.weights <= 8 or self.activations not in (0, 8, 16):
            raise ConfigError(
                f"qat with {self.weights} bits for weights and {self.activations} for activations",
                hint="weights: 2 to 8; activations: 8, 16, or 0 to leave them float",
            )
        for name, known in (("steps", STEPS), ("range", RANGES), ("batch_norm", BATCH_NORM)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r} of qat", hint=f"use {', '.join(known)}"
                )
        if self.batches < 1:
            raise ConfigError(f"qat with {self.batches} batches for the ranges", hint="1 or more")
        if not self.per_channel and self.batch_norm != "fold":
            raise ConfigError(
                f"batch_norm={self.batch_norm} ends in a scale a channel, and per_channel is false",
                hint="use batch_norm=fold",
            )
        parse_bits(self.layers)

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Quantize in place and return ``model``.

        Raises ``SourceError`` if it has no layer to quantize, and ``UsageError`` without a task where there are
        activations to quantize or weights to train.
        """
        import torch

        from edgekit.compress.steps import qat_batch_norm as norms

        bits = self._bits(model)
        run = _runner(context, bits)
        torch.manual_seed(context.seed)  # a run that goes on after a kill finds the same ranges
        pairs = norms.pairs(model.eval(), bits, run)
        if self.batch_norm == "fold":
            norms.fold(model, pairs)
        numbers = self._install(model, bits, context, run)
        held = norms.hold_statistics(model) if self.batch_norm != "train" else []
        try:
            if self.training.epochs:
                fit(model, context.needs_task(self.NAME), self.training, seed=context.seed)
        finally:
            for handle in held:
                handle.remove()
        _settle(model.eval(), bits)
        if self.batch_norm != "fold":
            norms.fold_stored(model, pairs)
        context.record(_notes(model, bits, numbers, pairs))
        return model

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """A fresh module in the form that :meth:`apply` left; its numbers are loaded afterwards."""
        import torch

        from edgekit.compress.steps import qat_batch_norm as norms
        from edgekit.compress.steps.qat_layers import Input, Integers, attach, store

        inputs: dict[int, torch.nn.Module] = {}
        for key, facts in tensors.items():
            layer, _, kind = key.rpartition(".")
            if kind != "bits":
                continue
            module = _layer(model, layer)
            weights, axis, number, activations = (int(v) for v in facts)
            if f"{layer}.batch_norm" in tensors:
                norm = bytes(tensors[f"{layer}.batch_norm"].tolist()).decode()
                _layer(model, norm)
                norms.add_bias(module)
                norms.drop(model, norm)
            weight = module.get_parameter("weight")
            shape = (weight.shape[axis],) if axis >= 0 else ()
            zeros = torch.zeros_like(weight, dtype=torch.int8)
            store(module, Integers(zeros, weight.new_ones(shape), weights, axis if axis >= 0 else None))
            if number >= 0:
                dtype = self._dtype(activations)
                attach(module, inputs.setdefault(number, Input(dtype)))
        return model

    def _bits(self, model: torch.nn.Module) -> dict[str, Bits]:
        """The bits of every layer that is quantized."""
        layers = prunable(model)
        rules = parse_bits(self.layers)
        for pattern, _ in rules:
            if not fnmatch.filter(layers, pattern):
                raise ConfigError(
                    f"no layer is called {pattern!r}",
                    hint=f"layers that can be quantized: {', '.join(layers)}",
                )
        plain = Bits(weights=self.weights, activations=self.activations)
        out = {}
        for name in layers:
            weights, activations = next((v for p, v in rules if fnmatch.fnmatchcase(name, p)), (None, None))
            if weights != 0:
                out[name] = Bits(
                    weights=plain.weights if weights is None else weights,
                    activations=plain.activations if activations is None else activations,
                )
        if not out:
            raise SourceError(
                "the model has no linear or convolution layer with float weights", hint="leave this step out"
            )
        return out

    def _dtype(self, bits: int) -> torch.dtype:
        import torch

        if bits == 16:
            return torch.int16
        return torch.int8 if self.symmetric else torch.uint8

    def _install(
        self,
        model: torch.nn.Module,
        bits: Mapping[str, Bits],
        context: Context,
        run: Callable[[torch.nn.Module], Any],
    ) -> dict[str, int]:
        """Put quantizers everywhere; the number of the input that each layer reads quantized."""
        from torch.nn.utils import parametrize

        from edgekit.compress.steps import qat_ranges
        from edgekit.compress.steps.qat_layers import LearnedWeight, attach, channel_axis

        learned = self.steps == "learned"
        reading = [name for name, b in bits.items() if b.activations]
        numbers = qat_ranges.shared_inputs(model, reading, run) if reading else {}
        for number, quantizer in self._inputs(model, bits, context, numbers).items():
            for name in (n for n, at in numbers.items() if at == number):
                attach(model.get_submodule(name), quantizer)
        for name, b in bits.items():
            module = model.get_submodule(name)
            weight = module.get_parameter("weight").detach()
            axis = channel_axis(module) if self.per_channel else None
            scale = qat_ranges.weight_scale(weight, axis, b.weights, self.range)
            learning = LearnedWeight(weight, scale, b.weights, axis, learned=learned)
            parametrize.register_parametrization(module, "weight", learning)
        return numbers

    def _inputs(
        self, model: torch.nn.Module, bits: Mapping[str, Bits], context: Context, numbers: dict[str, int]
    ) -> dict[int, torch.nn.Module]:
        """The quantizer of each input. One that layers of 8 and of 16 bits read has 16."""
        from edgekit.compress.steps import qat_ranges
        from edgekit.compress.steps.qat_layers import LearnedInput
        from edgekit.quantize.params import affine

        if not numbers:
            return {}
        seen = qat_ranges.observe(model, numbers, lambda m: context.observe(m, self.batches, step=self.NAME))
        made: dict[int, torch.nn.Module] = {}
        for number, statistics in seen.items():
            width = max(bits[n].activations for n, at in numbers.items() if at == number)
            dtype = self._dtype(width)
            symmetric = self.symmetric or width == 16
            low, high = statistics.range(self.range, bits=width, symmetric=symmetric)
            at = affine(low, high, str(dtype).removeprefix("torch."), symmetric=symmetric)
            made[number] = LearnedInput(at.scale, at.zero_point, dtype, learned=self.steps == "learned")
        return made


def _runner(context: Context, bits: Mapping[str, Bits]) -> Callable[[torch.nn.Module], torch.Tensor]:
    """Runs a model once, without gradients; its outputs as one vector."""
    import torch

    from edgekit.graph.nested import flatten

    if context.task is None and any(b.activations for b in bits.values()):
        raise UsageError(
            "qat quantizes activations, and their ranges come from data",
            hint="give a task (data, loss and metric), or set activations=0",
        )

    def on_example(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            outputs = flatten(forward(model, context.example_inputs)).values()
        return torch.cat([o.detach().flatten().float() for o in outputs])

    def on_batch(model: torch.nn.Module) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        handle = model.register_forward_hook(
            lambda _, __, result: outputs.extend(
                o.detach().flatten().float() for o in flatten(result).values()
            )
        )
        try:
            context.observe(model, 1, step=Qat.NAME)
        finally:
            handle.remove()
        return torch.cat(outputs)

    return on_example if context.example_inputs else on_batch


def _layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The layer that was quantized, or the batch norm behind it. Raises ``SourceError`` when there is none."""
    from torch.nn.modules.batchnorm import _BatchNorm

    known = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)} | prunable(model)
    if name not in known:
        raise SourceError(
            f"the plan quantizes {name!r}, and the model has no such layer",
            hint="the source has changed since it was compressed: compress it again",
        )
    return known[name]


def _settle(model: torch.nn.Module, bits: Mapping[str, Bits]) -> None:
    """What was learnt, as integers and scales."""
    from torch.nn.utils import parametrize

    from edgekit.compress.steps.qat_layers import INPUT, LearnedInput, LearnedWeight, attach, store

    settled: dict[torch.nn.Module, torch.nn.Module] = {}
    for name in bits:
        module = model.get_submodule(name)
        learnt = module.parametrizations.weight[0]  # type: ignore[union-attr, index]
        assert isinstance(learnt, LearnedWeight)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        store(module, learnt.integers(module.get_parameter("weight").detach()))
        reading = getattr(module, INPUT, None)
        if isinstance(reading, LearnedInput):
            attach(module, settled.setdefault(reading, reading.settled()))


def _notes(
    model: torch.nn.Module, bits: Mapping[str, Bits], numbers: Mapping[str, int], pairs: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """What :meth:`Qat.restore` needs: a layer's weight bits, axis of its scales (or -1), number of the input that it
    reads (or -1), bits of that input; and the name of the batch norm that it took in."""
    import torch

    from edgekit.compress.steps.qat_layers import INPUT, Input, Integers

    out: dict[str, torch.Tensor] = {}
    for name in bits:
        module = model.get_submodule(name)
        integers = module.parametrizations.weight[0]  # type: ignore[union-attr, index]
        assert isinstance(integers, Integers)
        reading = getattr(module, INPUT, None)
        width = torch.iinfo(reading.zero_point.dtype).bits if isinstance(reading, Input) else 0
        axis = -1 if integers.axis is None else integers.axis
        out[f"{name}.bits"] = torch.tensor([integers.bits, axis, numbers.get(name, -1), width])
    for name, norm in pairs.items():
        out[f"{name}.batch_norm"] = torch.tensor(list(norm.encode()), dtype=torch.uint8)
    return out


def parse_bits(text: str) -> list[tuple[str, tuple[int, int | None]]]:
    """``"conv1=8,head*=8/16"`` to pairs of a pattern and (weights, activations). Raises ``ConfigError``."""
    out: list[tuple[str, tuple[int, int | None]]] = []
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        weights, slash, activations = value.partition("/")
        fits = weights.isdigit() and (int(weights) == 0 or 2 <= int(weights) <= 8)
        if not name or not fits or (slash and activations not in ("0", "8", "16")):
            raise ConfigError(
                f"{item!r} gives no layer its bits", hint="write NAME=WEIGHTS or NAME=WEIGHTS/ACTIVATIONS"
            )
        out.append((name, (int(weights), int(activations) if slash else None)))
    return out
