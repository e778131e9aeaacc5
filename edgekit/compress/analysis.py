"""What the distributions of weights and activations say about a model, and which method they speak for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgekit.compress.hooks import removed
from edgekit.compress.statistics import FAINT, Activations, Tally, Weights, of_weight
from edgekit.compress.step import Context, forward
from edgekit.compress.structured.blocks import influences
from edgekit.compress.training import dataset
from edgekit.compress.training.task import Task
from edgekit.errors import SourceError
from edgekit.graph.nested import invoke
from edgekit.types import TorchModel

_BATCHES = 8
"""Batches whose activations are looked at."""

LOW_RANK = 0.5
"""Below this share of the full rank two factors of the effective rank are smaller than the matrix."""
SMALL = 0.2
"""A tenth of the root mean square cuts 8 % of a normal distribution; at 20 % and more the mass is at zero."""
HEAVY_TAIL = 6.0
"""Excess kurtosis from which few outliers set the range that all others share (a Laplace distribution has 3)."""
PEAKED = 20.0
"""Peak over root mean square from which INT8 keeps fewer than four bits for what is ordinary."""
IDLE = 0.1
"""A block that turns its input by less than this (1 - cosine) does little."""
DENSE = 0.12
"""Up to this share of small weights (a normal distribution has 8 %) nothing is near zero for prune to take."""

_EVEN = "INT8 quantization"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A step (or a precision) that suits a layer or the whole model, and why in one sentence with the numbers."""

    method: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with a weight. ``share`` is its part of the model's parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    share: float
    weights: Weights
    activations: Activations | None = None
    advice: tuple[Advice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Layers, the influence (``1 - cos(in, out)``) of each block that could be taken out, and what all of it speaks
    for beside the layers' own advice."""

    layers: tuple[Layer, ...]
    blocks: Mapping[str, float]
    advice: tuple[Advice, ...]


def study(model: TorchModel, data: str, task: Task | None) -> Findings:
    """Layers and blocks of a copy of ``model``; activations over some of ``data`` (as ``edgekit build`` takes it), else
    of the ``task``'s batches, else over the example."""

    def run(module: nn.Module) -> None:
        if not data and task is not None and task.steps():
            Context(task=task).observe(module, _BATCHES, step="analysis")
            return
        with torch.no_grad():
            if not data:
                forward(module, model.example_inputs)
                return
            for _, batch in zip(range(_BATCHES), dataset.load(data, model).batches(32), strict=False):
                invoke(module, batch.inputs)

    layers = analyze(copy.deepcopy(model.module), run)
    return findings(layers, influences(copy.deepcopy(model.module), model.example_inputs))


def analyze(model: nn.Module, run: Callable[[nn.Module], None] | None = None) -> tuple[Layer, ...]:
    """Every layer with a weight of two or more axes, in the model's order.

    ``run`` feeds the model with samples (see :meth:`edgekit.compress.step.Context.observe`); without it there
    are no activation statistics. Raises ``SourceError`` when there is no such layer.
    """
    modules = {name: (m, w) for name, m in model.named_modules() if (w := _weight(m)) is not None}
    if not modules:
        raise SourceError("the model has no layer with a weight matrix", hint="there is nothing to compress")
    total = sum(p.numel() for p in model.parameters())
    tallies = {name: Tally() for name in modules}
    if run is not None:
        model.eval()
        with removed([m.register_forward_hook(tallies[name].look) for name, (m, _) in modules.items()]):
            run(model)
    layers = []
    for name, (module, weight) in modules.items():
        kind, shape = type(module).__name__, tuple(weight.shape)
        weights, activations = of_weight(weight), tallies[name].result()
        layers.append(
            Layer(
                name=name,
                kind=kind,
                shape=shape,
                parameters=weight.numel(),
                share=weight.numel() / max(1, total),
                weights=weights,
                activations=activations,
                advice=tuple(_advise(kind, shape, weights, activations)),
            )
        )
    return tuple(layers)


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.dim() >= 2 else None


def findings(layers: tuple[Layer, ...], blocks: Mapping[str, float]) -> Findings:
    """Layers and blocks seen together."""
    advice = []
    idle = {name: value for name, value in blocks.items() if value < IDLE}
    if idle:
        least = min(idle, key=lambda name: idle[name])
        turned = f"{len(idle)} of {len(blocks)} blocks turn their input by less than {IDLE:g}"
        advice.append(Advice(method="depth", why=f"{turned}, {least} by {idle[least]:.3f}"))
    share = max(1e-9, sum(layer.share for layer in layers))
    small = sum(layer.share * layer.weights.small for layer in layers) / share
    if small <= DENSE:
        few = f"only {small:.0%} of the weights are near zero"
        why = f"{few}: a penalty in training makes more of them, for prune to take"
        advice.append(Advice(method="sparsify", why=why))
    cutting = sorted({a.method for layer in layers for a in layer.advice} & {"shrink", "low-rank"})
    if idle or cutting:
        named = ", ".join([*(["depth"] if idle else []), *cutting])
        why = f"{named} cut into the function: the original can teach what is left"
        advice.append(Advice(method="distill", why=why))
    return Findings(layers=layers, blocks=blocks, advice=tuple(advice))


def reasons(found: Findings, method: str) -> tuple[str, ...]:
    """What speaks for the step ``method``: of the whole model, then of its layers, the largest first."""
    alike = {method, _EVEN} if method == "qat" else {method}
    rows = [
        (layer.share, f"{layer.name}: {a.why}")
        for layer in found.layers
        for a in layer.advice
        if a.method in alike
    ]
    rows.sort(key=lambda row: (-row[0], row[1]))
    return (*(a.why for a in found.advice if a.method in alike), *(text for _, text in rows))


def _advise(
    kind: str, shape: tuple[int, ...], weights: Weights, activations: Activations | None
) -> Iterator[Advice]:
    """Which steps suit a layer of these statistics, the most telling first."""
    advice = [*_of_structure(kind, shape, weights, activations), *_of_values(weights)]
    yield from advice
    if activations is not None and activations.peak >= PEAKED:
        peak = f"activations peak at {activations.peak:.0f} times their root mean square"
        yield Advice(
            method="qat",
            why=f"{peak}: INT8 after training loses the rest; train with it, or take INT16 activations",
        )
    if not {a.method for a in advice} & {"cluster", "prune", "low-rank"}:
        spread = f"{weights.bits:.1f} bits of entropy on an 8-bit grid, kurtosis {weights.kurtosis:.1f}"
        yield Advice(method=_EVEN, why=f"{spread}: nothing stands out, the even grid fits")


def _of_structure(
    kind: str, shape: tuple[int, ...], weights: Weights, activations: Activations | None
) -> Iterator[Advice]:
    """What can be cut out of the layer as a whole: channels, ranks."""
    side = min(shape[0], math.prod(shape[1:]))
    if activations is not None and activations.dead:
        dead = f"{activations.dead} of {activations.channels} channels never answer"
        yield Advice(method="shrink", why=f"{dead}: cutting them costs nothing")
    elif weights.faint >= 0.1 and kind != "Embedding":
        why = f"{weights.faint:.0%} of the channels have less than {FAINT:.0%} of the usual norm"
        yield Advice(method="shrink", why=why)
    if weights.rank < LOW_RANK and side >= 32:
        aware = ", weighed by how often its tokens occur" if kind == "Embedding" else ""
        rank = f"effective rank {weights.rank:.0%} of {side}"
        yield Advice(method="low-rank", why=f"{rank}: two factors hold what one matrix does{aware}")


def _of_values(weights: Weights) -> Iterator[Advice]:
    """What can be done to single weights."""
    if weights.small >= SMALL or weights.density < 0.9:
        zero = f", {1 - weights.density:.0%} are zero already" if weights.density < 1 else ""
        why = f"{weights.small:.0%} of the weights are below a tenth of the root mean square{zero}"
        yield Advice(method="prune", why=why)
    if weights.kurtosis >= HEAVY_TAIL:
        tail = f"kurtosis {weights.kurtosis:.1f}"
        yield Advice(
            method="cluster", why=f"{tail}: outliers waste an even grid, trained values follow the mass"
        )
