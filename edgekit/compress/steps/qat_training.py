"""What ``qat`` does: quantizers put in, trained, and settled as integers and scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from edgekit.compress import constraints
from edgekit.compress.constraints import Values
from edgekit.compress.hooks import prunable, removed
from edgekit.compress.step import Context, Tensors, forward
from edgekit.compress.steps import batch_norm, patterns, qat_ranges, qat_rounding
from edgekit.compress.steps.qat import Qat, parse_bits
from edgekit.compress.steps.qat_grid import Grid, integers_of, settle
from edgekit.compress.steps.qat_layers import (
    INPUT,
    Input,
    Integers,
    LearnedInput,
    LearnedWeight,
    attach,
    channel_axis,
    store,
)
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit
from edgekit.errors import SourceError, UsageError
from edgekit.graph.nested import flatten
from edgekit.quantize.params import affine


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Of one layer: its weights' (2 to 8) and those of what it reads (8, 16, or 0: float)."""

    weights: int
    activations: int


def apply(step: Qat, model: nn.Module, context: Context) -> nn.Module:
    """Quantize in place and return ``model``.

    Raises ``SourceError`` if it has no layer to quantize, and ``UsageError`` without a task where there are
    activations to quantize or weights to train.
    """
    bits = _bits(step, model)
    _refuse_shared(step, model, bits)
    run = _runner(context, bits)
    torch.manual_seed(context.seed)  # a run that goes on after a kill finds the same ranges
    pairs = batch_norm.pairs(model.eval(), bits, run)
    if step.batch_norm == "fold":
        batch_norm.refuse_shared(model, pairs, step.NAME)
        batch_norm.fold(model, pairs)
    numbers = _install(step, model, bits, context, run)
    if step.refit and not step.training.epochs and context.task is not None:
        qat_rounding.choose(model, bits, context, step.batches, step=step.NAME)
    with removed(batch_norm.hold_statistics(model) if step.batch_norm != "train" else []):
        if step.training.epochs:
            fit(model, taught(step.NAME, step.training, context), step.training, seed=context.seed)
    model.eval()
    for name in bits:
        settle(model.get_submodule(name))
        constraints.lay(model.get_submodule(name), Grid(learned=step.steps == "learned"))
    # Into the scales, behind integers that are settled: folding into the weights would round them anew.
    if step.batch_norm != "fold":
        batch_norm.fold_stored(model, pairs)
    context.record(_notes(model, bits, numbers, pairs))
    return model


def restore(step: Qat, model: nn.Module, tensors: Tensors) -> nn.Module:
    """A fresh module in the form that :func:`apply` left, from its notes; its numbers are loaded afterwards."""
    inputs: dict[int, nn.Module] = {}
    for key, facts in tensors.items():
        layer, _, kind = key.rpartition(".")
        if kind != "bits":
            continue
        module = _layer(model, layer)
        weights, axis, number, activations = (int(v) for v in facts)
        if f"{layer}.batch_norm" in tensors:
            norm = batch_norm.decoded(tensors[f"{layer}.batch_norm"])
            _layer(model, norm)
            batch_norm.take_in(model, layer, norm)
        weight = module.get_parameter("weight")
        shape = (weight.shape[axis],) if axis >= 0 else ()
        zeros = torch.zeros_like(weight, dtype=torch.int8)
        if number >= 0:  # before the integers, as in apply: optimizers number parameters in this order
            attach(module, inputs.setdefault(number, Input(_dtype(step, activations))))
        store(module, Integers(zeros, weight.new_ones(shape), weights, axis if axis >= 0 else None))
        constraints.lay(module, Grid(learned=step.steps == "learned"))
    return model


def rehearse(step: Qat, model: nn.Module, context: Context) -> nn.Module:
    """What would be refused, and integers in all layers that would have them."""
    layers = constraints.float_layers(model, step.NAME)
    rules = parse_bits(step.layers)
    bits = [name for name in layers if patterns.first(rules, name, (step.weights, None))[0]]
    _refuse_shared(step, model, bits)
    if step.batch_norm == "fold":
        batch_norm.rehearse_fold(model, context, step.NAME)
    for name in bits:
        constraints.lay(layers[name], Grid(learned=step.steps == "learned"))
    return model


def _refuse_shared(step: Qat, model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ``ComposeError``: one value would become as many as there are scales."""
    shared = constraints.having({n: model.get_submodule(n) for n in layers}, Values)
    constraints.refuse(
        shared if step.per_channel else (),
        "qat has a scale for each output channel: values that layers share would be other values in each",
        hint="use qat(per_channel=false), or leave cluster out: qat with few bits has few values itself",
    )


def _bits(step: Qat, model: nn.Module) -> dict[str, Bits]:
    """The bits of every layer that is quantized."""
    layers = tuple(constraints.float_layers(model, step.NAME))
    rules = parse_bits(step.layers)
    patterns.check((pattern for pattern, _ in rules), layers, "quantized")
    bits = {}
    for name in layers:
        weights, activations = patterns.first(rules, name, (step.weights, None))
        if weights != 0:
            activations = step.activations if activations is None else activations
            bits[name] = Bits(weights=weights, activations=activations)
    if not bits:
        raise SourceError(
            "the model has no linear or convolution layer with float weights", hint="leave this step out"
        )
    return bits


def _dtype(step: Qat, bits: int) -> torch.dtype:
    if bits == 16:
        return torch.int16
    return torch.int8 if step.symmetric else torch.uint8


def _install(
    step: Qat,
    model: nn.Module,
    bits: Mapping[str, Bits],
    context: Context,
    run: Callable[[nn.Module], torch.Tensor],
) -> dict[str, int]:
    """Put quantizers everywhere; the number of the input that each layer reads quantized."""
    reading = [name for name, b in bits.items() if b.activations]
    numbers = qat_ranges.shared_inputs(model, reading, run) if reading else {}
    for number, quantizer in _inputs(step, model, bits, context, numbers).items():
        for name in (n for n, at in numbers.items() if at == number):
            attach(model.get_submodule(name), quantizer)
    for name, b in bits.items():
        module = model.get_submodule(name)
        weight = module.get_parameter("weight").detach()
        axis = channel_axis(module) if step.per_channel else None
        scale = qat_ranges.weight_scale(weight, axis, b.weights, step.range)
        learning = LearnedWeight(
            weight, scale, b.weights, axis, learned=step.steps == "learned", zeros=weight == 0
        )
        parametrize.register_parametrization(module, "weight", learning)
    return numbers


def _inputs(
    step: Qat, model: nn.Module, bits: Mapping[str, Bits], context: Context, numbers: Mapping[str, int]
) -> dict[int, nn.Module]:
    """The quantizer of each input. One that layers of 8 and of 16 bits read has 16: a runtime quantizes a tensor
    once."""
    if not numbers:
        return {}
    observed = qat_ranges.observe(model, numbers, lambda m: context.observe(m, step.batches, step=step.NAME))
    quantizers: dict[int, nn.Module] = {}
    for number, statistics in observed.items():
        width = max(bits[n].activations for n, at in numbers.items() if at == number)
        dtype = _dtype(step, width)
        symmetric = step.symmetric or width == 16
        low, high = statistics.range(step.range, bits=width, symmetric=symmetric)
        at = affine(low, high, str(dtype).removeprefix("torch."), symmetric=symmetric)
        quantizers[number] = LearnedInput(at.scale, at.zero_point, dtype, learned=step.steps == "learned")
    return quantizers


def _runner(context: Context, bits: Mapping[str, Bits]) -> Callable[[nn.Module], torch.Tensor]:
    """Runs a model once, without gradients; its outputs as one vector."""
    if context.task is None and any(b.activations for b in bits.values()):
        raise UsageError(
            "qat quantizes activations, and their ranges come from data",
            hint="give a task (data, loss and metric), or set activations=0",
        )

    def on_example(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return _vector([forward(model, context.example_inputs)])

    def on_batch(model: nn.Module) -> torch.Tensor:
        results: list[object] = []
        with removed([model.register_forward_hook(lambda _, __, result: results.append(result))]):
            context.observe(model, 1, step=Qat.NAME)
        return _vector(results)

    return on_example if context.example_inputs else on_batch


def _vector(results: list[object]) -> torch.Tensor:
    return torch.cat([t.detach().flatten().float() for r in results for t in flatten(r).values()])


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer that was quantized, or the batch norm behind it. Raises ``SourceError`` when there is none."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)} | prunable(model)
    if name not in layers:
        raise SourceError(
            f"the plan quantizes {name!r}, and the model has no such layer",
            hint="the source has changed since it was compressed: compress it again",
        )
    return layers[name]


def _notes(
    model: nn.Module, bits: Mapping[str, Bits], numbers: Mapping[str, int], pairs: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """What :func:`restore` needs: a layer's weight bits, axis of its scales (or -1), number of the input that it
    reads (or -1), bits of that input; and the name of the batch norm that it took in."""
    notes: dict[str, torch.Tensor] = {}
    for name in bits:
        module = model.get_submodule(name)
        integers = integers_of(module)
        reading = getattr(module, INPUT, None)
        width = torch.iinfo(reading.zero_point.dtype).bits if isinstance(reading, Input) else 0
        axis = -1 if integers.axis is None else integers.axis
        notes[f"{name}.bits"] = torch.tensor([integers.bits, axis, numbers.get(name, -1), width])
    for name, norm in pairs.items():
        notes[f"{name}.batch_norm"] = batch_norm.encoded(norm).to(torch.uint8)
    return notes
