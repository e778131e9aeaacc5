"""What the distributions of weights and activations say about a model, layer by layer, and which method they speak for.

Weights: mean, standard deviation, excess kurtosis, density (the share that is not zero), the share that is small
(below a tenth of the root mean square), the bits of their entropy at 8 bits, effective rank. Activations, over some
batches: mean, standard deviation, kurtosis, sparsity, dead channels, peak over root mean square.

The effective rank is exp of the entropy of the normalised squared singular values (Roy & Vetterli, "The effective
rank", EUSIPCO 2007), over the smaller side of the weight as a matrix ``[out, in × kernel]``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgekit.compress.hooks import removed
from edgekit.compress.step import Context, forward
from edgekit.compress.structured.blocks import influences
from edgekit.compress.training import dataset
from edgekit.compress.training.task import Task
from edgekit.errors import SourceError
from edgekit.types import TorchModel

_SAMPLE = 1 << 20
"""So many values of a tensor are looked at, evenly spaced: statistics of a million do not move with more."""
_BATCHES = 8
"""Batches whose activations are looked at."""
_LARGEST = 2048
"""Matrices with a smaller side above this are projected before their spectrum is taken."""

LOW_RANK = 0.5
"""Below this share of the full rank two factors of the effective rank are smaller than the matrix."""
SMALL = 0.2
"""A tenth of the root mean square cuts 8 % of a normal distribution; at 20 % and more the mass is at zero."""
HEAVY_TAIL = 6.0
"""Excess kurtosis from which few outliers set the range that all others share (a Laplace distribution has 3)."""
PEAKED = 20.0
"""Peak over root mean square from which INT8 keeps fewer than four bits for what is ordinary."""
FAINT = 0.3
"""Output channels whose norm is below this share of the usual one carry little."""
IDLE = 0.1
"""A block that turns its input by less than this (1 - cosine) does little."""
DENSE = 0.12
"""Up to this share of small weights (a normal distribution has 8 %) nothing is near zero for prune to take."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Statistics of one layer's weight. Shares from 0 to 1."""

    mean: float
    std: float
    kurtosis: float
    density: float
    small: float
    bits: float
    rank: float
    dead_outputs: int
    faint: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Statistics of one layer's output over the samples that were run."""

    mean: float
    std: float
    kurtosis: float
    sparsity: float
    dead: int
    channels: int
    peak: float


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


def findings(layers: tuple[Layer, ...], blocks: Mapping[str, float]) -> Findings:
    """Layers and blocks seen together."""
    out = []
    idle = {name: value for name, value in blocks.items() if value < IDLE}
    if idle:
        least = min(idle, key=lambda name: idle[name])
        out.append(
            Advice(
                method="depth",
                why=f"{len(idle)} of {len(blocks)} blocks turn their input by less than {IDLE:g}, {least} by "
                f"{idle[least]:.3f}",
            )
        )
    small = sum(layer.share * layer.weights.small for layer in layers) / max(
        1e-9, sum(x.share for x in layers)
    )
    if small <= DENSE:
        out.append(
            Advice(
                method="sparsify",
                why=f"only {small:.0%} of the weights are near zero: a penalty in training makes more of them, "
                "for prune to take",
            )
        )
    structural = sorted({a.method for layer in layers for a in layer.advice} & {"shrink", "low-rank"})
    if idle or structural:
        named = ", ".join([*(["depth"] if idle else []), *structural])
        out.append(
            Advice(
                method="distill", why=f"{named} cut into the function: the original can teach what is left"
            )
        )
    return Findings(layers=layers, blocks=blocks, advice=tuple(out))


_EVEN = "INT8 quantization"


def reasons(found: Findings, method: str) -> tuple[str, ...]:
    """What speaks for the step ``method``: of the whole model, then of its layers, the largest first."""
    alike = {method, _EVEN} if method == "qat" else {method}
    whole = [a.why for a in found.advice if a.method in alike]
    rows = sorted(
        ((layer.share, f"{layer.name}: {a.why}") for layer in found.layers for a in layer.advice
         if a.method in alike),
        key=lambda row: (-row[0], row[1]),
    )  # fmt: skip
    return (*whole, *(text for _, text in rows))


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
                module(**batch.inputs)

    layers = analyze(copy.deepcopy(model.module), run)
    return findings(layers, influences(copy.deepcopy(model.module), model.example_inputs))


def analyze(model: nn.Module, run: Callable[[nn.Module], None] | None = None) -> tuple[Layer, ...]:
    """Every layer with a weight of two or more axes, in the model's order.

    ``run`` feeds the model with samples (see :meth:`edgekit.compress.step.Context.observe`); without it there
    are no activation statistics. Raises ``SourceError`` when there is no such layer.
    """
    found = {name: m for name, m in model.named_modules() if _weight(m) is not None}
    if not found:
        raise SourceError("the model has no layer with a weight matrix", hint="there is nothing to compress")
    total = sum(p.numel() for p in model.parameters())
    tallies: dict[str, _Tally] = {name: _Tally() for name in found}
    if run is not None:
        model.eval()
        with removed([m.register_forward_hook(tallies[name].look) for name, m in found.items()]):
            run(model)
    layers = []
    for name, module in found.items():
        weight = _weight(module)
        assert weight is not None
        weights, activations = of_weight(weight), tallies[name].result()
        layers.append(
            Layer(
                name=name,
                kind=type(module).__name__,
                shape=tuple(weight.shape),
                parameters=weight.numel(),
                share=weight.numel() / max(1, total),
                weights=weights,
                activations=activations,
                advice=advise(type(module).__name__, tuple(weight.shape), weights, activations),
            )
        )
    return tuple(layers)


def of_weight(weight: torch.Tensor) -> Weights:
    """Statistics of one weight ``[out, …]``."""
    matrix = weight.detach().float().flatten(1)
    values = _sampled(matrix.flatten())
    rms = float(values.square().mean().sqrt())
    levels = torch.round(values / max(float(values.abs().max()), 1e-30) * 127).to(torch.int64) + 128
    p = torch.bincount(levels, minlength=257).double() / len(values)
    mean, std, kurtosis = _moments(values)
    return Weights(
        mean=mean,
        std=std,
        kurtosis=kurtosis,
        density=float((values != 0).float().mean()),
        small=float((values.abs() < 0.1 * rms).float().mean()),
        bits=float(-(p[p > 0] * p[p > 0].log2()).sum()),
        rank=_rank(matrix),
        dead_outputs=int((matrix == 0).all(1).sum()),
        faint=_faint(matrix),
    )


def advise(
    kind: str, shape: tuple[int, ...], weights: Weights, activations: Activations | None
) -> tuple[Advice, ...]:
    """Which steps suit a layer of these statistics, the most telling first."""
    found = [*_of_structure(kind, shape, weights, activations), *_of_values(weights)]
    if activations is not None and activations.peak >= PEAKED:
        found.append(
            (
                "qat",
                f"activations peak at {activations.peak:.0f} times their root mean square: INT8 after training "
                "loses the rest; train with it, or take INT16 activations",
            )
        )
    if not any(method in ("cluster", "prune", "low-rank") for method, _ in found):
        found.append(
            (
                _EVEN,
                f"{weights.bits:.1f} bits of entropy on an 8-bit grid, kurtosis {weights.kurtosis:.1f}: "
                "nothing stands out, the even grid fits",
            )
        )
    return tuple(Advice(method=method, why=why) for method, why in found)


def _of_structure(
    kind: str, shape: tuple[int, ...], weights: Weights, activations: Activations | None
) -> Iterator[tuple[str, str]]:
    """What can be cut out of the layer as a whole: channels, ranks."""
    side = min(shape[0], math.prod(shape[1:]))
    if activations is not None and activations.dead:
        yield (
            "shrink",
            f"{activations.dead} of {activations.channels} channels never answer: cutting them costs nothing",
        )
    elif weights.faint >= 0.1 and kind != "Embedding":
        yield "shrink", f"{weights.faint:.0%} of the channels have less than {FAINT:.0%} of the usual norm"
    if weights.rank < LOW_RANK and side >= 32:
        aware = ", weighed by how often its tokens occur" if kind == "Embedding" else ""
        yield (
            "low-rank",
            f"effective rank {weights.rank:.0%} of {side}: two factors hold what one matrix does{aware}",
        )


def _of_values(weights: Weights) -> Iterator[tuple[str, str]]:
    """What can be done to single weights."""
    if weights.small >= SMALL or weights.density < 0.9:
        zero = f", {1 - weights.density:.0%} are zero already" if weights.density < 1 else ""
        yield "prune", f"{weights.small:.0%} of the weights are below a tenth of the root mean square{zero}"
    if weights.kurtosis >= HEAVY_TAIL:
        yield (
            "cluster",
            f"kurtosis {weights.kurtosis:.1f}: outliers waste an even grid, trained values follow the mass",
        )


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.dim() >= 2 else None


def _rank(matrix: torch.Tensor) -> float:
    """Effective rank over the smaller side."""
    side = min(matrix.shape)
    if side < 2 or not matrix.any():
        return 0.0 if not matrix.any() else 1.0
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    gram = matrix.T.double() @ matrix.double()
    if side > _LARGEST:
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(side, _LARGEST, generator=generator, dtype=torch.float64)).Q
        gram = basis.T @ gram @ basis
    energy = torch.linalg.eigvalsh(gram).clamp_min(0)
    p = energy / energy.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum())) / len(energy)


def _faint(matrix: torch.Tensor) -> float:
    """The share of rows whose norm is far below the usual one."""
    norms = matrix.norm(dim=1)
    return float((norms < FAINT * norms.median()).float().mean())


def _sampled(values: torch.Tensor) -> torch.Tensor:
    return values[:: max(1, len(values) // _SAMPLE)]


def _moments(values: torch.Tensor) -> tuple[float, float, float]:
    wide = values.double()
    mean = wide.mean()
    variance = (wide - mean).square().mean()
    if float(variance) < 1e-30:
        return float(mean), 0.0, 0.0
    return float(mean), float(variance.sqrt()), float(((wide - mean) ** 4).mean() / variance.square() - 3)


class _Tally:
    """Sums over the outputs of one layer; the channel axis is 1 for maps, the last for everything else."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.count = 0
        self.zeros = 0
        self.peak = 0.0
        self.range: torch.Tensor | None = None

    def look(self, module: nn.Module, _: object, output: object) -> None:
        """A forward hook."""
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            self._add(module, value)

    def _add(self, module: nn.Module, output: torch.Tensor) -> None:
        values = output.detach().float()
        wide = _sampled(values.flatten()).double()
        self.sums += torch.stack([wide.pow(k).sum() for k in range(1, 5)]).cpu()
        self.count += len(wide)
        self.zeros += int((wide == 0).sum())
        self.peak = max(self.peak, float(values.abs().max()) if values.numel() else 0.0)
        axis = 1 if isinstance(module, nn.modules.conv._ConvNd) and values.dim() > 2 else values.dim() - 1
        # A channel that gives the same value for every input carries nothing.
        columns = values.movedim(axis, 0).flatten(1)
        low, high = columns.amin(1), columns.amax(1)
        if self.range is None:
            self.range = torch.stack([low, high])
        elif self.range.shape[1] == len(low):
            self.range = torch.stack([torch.minimum(self.range[0], low), torch.maximum(self.range[1], high)])

    def result(self) -> Activations | None:
        """The statistics; ``None`` when the layer was not run."""
        if not self.count or self.range is None:
            return None
        m1, m2, m3, m4 = (float(s) / self.count for s in self.sums)
        variance = max(m2 - m1 * m1, 0.0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
        low, high = self.range
        same = (high - low).abs() <= 1e-6 * max(self.peak, 1e-30)
        rms = m2**0.5
        return Activations(
            mean=m1,
            std=variance**0.5,
            kurtosis=fourth / variance**2 - 3 if variance > 1e-30 else 0.0,
            sparsity=self.zeros / self.count,
            dead=int((same | (high <= 0)).sum()) if bool((low >= 0).all()) else int(same.sum()),
            channels=len(low),
            peak=self.peak / rms if rms else 0.0,
        )
