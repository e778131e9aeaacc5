"""What a float model's layers read, and what it answers, over a few calibration samples.

Corrections and ranges that look at a layer's output need more of its input than calibration keeps: second
moments, and histograms whose counts weigh as much as the layer makes of them. Memory does not depend on the
number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper

from edgekit.core.parallel import Once, in_order
from edgekit.graph import io as graphs
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.ranges import least_squared_error
from edgekit.quantize.params import Floats
from edgekit.types import OnnxModel, Sample, Samples

if TYPE_CHECKING:
    from edgekit.types import Array

Doubles = npt.NDArray[np.float64]
Outputs: TypeAlias = "Mapping[str, Array]"
"""What a model gives for one sample, by the outputs' names."""

_PROBES = 48
_BINS = 2048
_ROWS = 1 << 16  # elements of a tensor that are looked at, a sample


def probes(samples: Samples) -> list[Sample]:
    """A few samples, evenly spaced."""
    places = set(np.linspace(0, len(samples) - 1, min(_PROBES, len(samples))).astype(int))
    return [s for i, s in enumerate(samples) if i in places]


def answers(path: Path, samples: Sequence[Sample]) -> Iterator[Outputs]:
    """The outputs of the model in a file, sample after sample; Q/DQ in float, so that what is measured is the model
    and not the processor that happens to measure it."""
    session = graphs.session(path, fused=False, threads=1)
    return in_order(lambda sample: graphs.run(session, sample.inputs), samples)


class LayerInputs:
    """Runs a float model on a few samples, as often as something is asked of it."""

    def __init__(self, model: OnnxModel, samples: Sequence[Sample]) -> None:
        self.model, self.samples = model, samples

    def values(self, tensors: Sequence[str]) -> Iterator[Mapping[str, Floats]]:
        """The tensors by name, sample after sample."""
        if not tensors:
            return
        fetched = [t for t in tensors if t not in self.model.input_names]
        session = graphs.session(self.model.path, changed=_with_outputs(self.model, fetched), threads=1)

        def fetch(sample: Sample) -> dict[str, Floats]:
            feed = {n: sample.inputs[n] for n in self.model.input_names}
            values = session.run(fetched, feed) if fetched else []  # asked for nothing, it gives everything
            return dict(zip(fetched, values, strict=True)) | feed

        yield from in_order(fetch, self.samples)

    def squares(self, tensors: Sequence[str]) -> dict[str, Doubles]:
        """E[x²] of each entry of the last axis, by tensor."""
        sums: dict[str, Doubles] = {}
        rows: dict[str, int] = {}
        for values in self.values(tensors):
            for name in tensors:
                x = values[name].reshape(-1, values[name].shape[-1])
                total = np.einsum("rc,rc->c", x, x, dtype=np.float64)
                sums[name] = sums[name] + total if name in sums else total
                rows[name] = rows.get(name, 0) + len(x)
        return {name: total / rows[name] for name, total in sums.items()}


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    """Mass in bins of equal width between ``low`` and ``high``, which are the tensor's extremes and zero."""

    low: float
    high: float
    mass: Doubles

    @property
    def edges(self) -> Doubles:
        return np.linspace(self.low, self.high, self.mass.size + 1)


class LayerRanges:
    """Ranges of least squared error at the outputs of the layers that read a tensor.

    The error of a layer's output is Σ |W_c|² E[(Q(x_c) - x_c)²] over its input channels c, where errors of
    different channels do not depend on each other. So a value weighs as much as the squared norm of the
    weights it meets: outliers that meet large weights are kept, others are clipped. (Choukroun et al.,
    "Low-bit Quantization of Neural Networks for Efficient Inference", 2019, minimise the plain error.)
    """

    def __init__(self, graph: ir.Graph, inputs: LayerInputs, calibration: Calibration) -> None:
        weights = _channel_weights(graph, calibration)
        self._histograms = _histograms(weights, inputs, calibration)
        self._once = Once()

    def range(self, tensor: str, *, bits: int, symmetric: bool) -> tuple[float, float] | None:
        """``(low, high)`` of a tensor that only weighted layers read, else ``None``."""
        if tensor not in self._histograms:
            return None
        return self._once.get(
            (tensor, bits, symmetric), lambda: self._search(self._histograms[tensor], bits, symmetric)
        )

    def _search(self, histogram: _Weighted, bits: int, symmetric: bool) -> tuple[float, float]:
        bins = (histogram.edges, histogram.mass)
        return least_squared_error(bins, histogram.low, histogram.high, bits=bits, symmetric=symmetric)


def _channel_weights(graph: ir.Graph, calibration: Calibration) -> dict[str, tuple[int, Doubles]]:
    """Channel axis, and squared norm of each channel's weights, of the tensors that only layers read."""
    weights: dict[str, tuple[int, Doubles]] = {}
    cores = {b.core: b for b in find_blocks(graph)}
    for block in cores.values():
        value = block.activations[0] if block.weight is not None else None
        if value is None or value.name in weights or value.is_graph_output():
            continue
        statistics = calibration.tensors.get(value.name or "")
        readers = [cores.get(u.node) if u.idx == 0 else None for u in value.uses()]
        every = [None if b is None or b.op == "ConvTranspose" else channel_norms(b) for b in readers]
        norms = [n for n in every if n is not None]
        if statistics is None or statistics.masked or len(norms) < len(every):
            continue
        if len({n.size for n in norms}) == 1:
            weights[value.name or ""] = (1 if block.op == "Conv" else -1, np.sum(norms, axis=0))
    return weights


def channel_norms(block: Block) -> Doubles | None:
    """Squared norm of the weights that each input channel meets; ``None`` without constant float weights."""
    array = constant(block.weight) if block.weight is not None else None
    if array is None or array.dtype != np.float32 or (block.op != "Conv" and array.ndim != 2):
        return None
    squares: Doubles = np.square(array, dtype=np.float64)
    if block.op == "Conv":
        groups = int(attribute(block.core, "group", 1))
        by_group = squares.reshape(groups, -1, *squares.shape[1:])
        norms: Doubles = by_group.sum(axis=(1, *range(3, by_group.ndim))).reshape(-1)
        return norms
    transposed = block.op == "Gemm" and attribute(block.core, "transB", 0)
    rows: Doubles = squares.sum(axis=0 if transposed else 1)
    return rows


def _histograms(
    weights: Mapping[str, tuple[int, Doubles]], inputs: LayerInputs, calibration: Calibration
) -> dict[str, _Weighted]:
    histograms = {}
    for name, (_, weight) in weights.items():
        s = calibration.tensors[name]
        low, high = min(s.low, 0.0), max(s.high, 0.0)
        if high > low and weight.sum() > 0:
            histograms[name] = _Weighted(low=low, high=high, mass=np.zeros(_BINS))
    for values in inputs.values(list(histograms)):
        for name, histogram in histograms.items():
            axis, weight = weights[name]
            rows, step = _rows(values[name], axis)
            _add(histogram, rows, weight * step)
    for name, histogram in histograms.items():  # the extremes of all samples are exact: counted once each
        s, weight = calibration.tensors[name], weights[name][1]
        by_channel = s.channel_low.size == weight.size and s.channel_axis != 0
        ends = (s.channel_low, s.channel_high) if by_channel else (s.half_low, s.half_high)
        for end in ends:
            _add(histogram, end[None, :], weight if by_channel else np.full(end.size, weight.mean()))
    return histograms


def _rows(x: Floats, axis: int) -> tuple[Floats, int]:
    """``[rows, channels]`` of some of the positions of ``x``, and of how many each stands for."""
    step = max(1, x.size // _ROWS) | 1
    if axis == 1:
        flat = x.reshape(x.shape[0], x.shape[1], -1)[:, :, ::step]
        return flat.transpose(0, 2, 1).reshape(-1, x.shape[1]), step
    return x.reshape(-1, x.shape[-1])[::step], step


def _add(histogram: _Weighted, rows: Floats, weight: Doubles) -> None:
    """Count ``rows`` ``[rows, channels]`` with the ``weight`` of each channel."""
    width = (histogram.high - histogram.low) / histogram.mass.size
    scaled = rows - np.float32(histogram.low)
    scaled *= np.float32(1.0 / width)
    places = scaled.astype(np.int32).reshape(-1)
    np.clip(places, 0, histogram.mass.size - 1, out=places)
    spread = np.broadcast_to(weight, rows.shape).reshape(-1)
    histogram.mass[:] += np.bincount(places, weights=spread, minlength=histogram.mass.size)


def _with_outputs(model: OnnxModel, tensors: Sequence[str]) -> bytes:
    """The model with ``tensors`` as outputs."""
    proto = graphs.read_proto(model.path)
    have = {o.name for o in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(
        helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in tensors if t not in have
    )
    serialized: bytes = proto.SerializeToString()
    return serialized
