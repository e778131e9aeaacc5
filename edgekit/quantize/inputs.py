"""What the weighted layers of a float model read, over a few calibration samples.

Corrections and ranges that look at a layer's output need more of its input than calibration keeps: second
moments, and histograms whose counts weigh as much as the layer makes of them. Memory does not depend on the
number of samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto, helper

from edgekit.graph import io as graphs
from edgekit.quantize.auto import probes
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.ranges import least_squared_error
from edgekit.quantize.params import Floats
from edgekit.types import OnnxModel, Samples

if TYPE_CHECKING:
    import onnxruntime

Doubles = npt.NDArray[np.float64]

_BINS = 2048
_ROWS = 1 << 16  # elements of a tensor that are looked at, a sample


class LayerInputs:
    """Runs a float model on a few of the calibration samples, as often as something is asked of it."""

    def __init__(self, model: OnnxModel, samples: Samples) -> None:
        self.model, self.samples = model, samples

    def values(self, tensors: Sequence[str]) -> Iterator[Mapping[str, Floats]]:
        """The tensors by name, sample after sample."""
        if not tensors:
            return
        fetched = [t for t in tensors if t not in self.model.input_names]
        session = _session(self.model, fetched)
        for sample in probes(self.samples):
            feed = {n: sample.inputs[n] for n in self.model.input_names}
            found = session.run(fetched, feed) if fetched else []  # asked for nothing, it gives everything
            yield dict(zip(fetched, found, strict=True)) | feed

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

    def range(self, tensor: str, *, bits: int, symmetric: bool) -> tuple[float, float] | None:
        """``(low, high)`` of a tensor that only weighted layers read, else ``None``."""
        found = self._histograms.get(tensor)
        if found is None:
            return None
        return least_squared_error(
            (found.edges, found.mass), found.low, found.high, bits=bits, symmetric=symmetric
        )


def _channel_weights(graph: ir.Graph, calibration: Calibration) -> dict[str, tuple[int, Doubles]]:
    """Channel axis, and squared norm of each channel's weights, of the tensors that only layers read."""
    found: dict[str, tuple[int, Doubles]] = {}
    cores = {b.core: b for b in find_blocks(graph)}
    for block in cores.values():
        value = block.activations[0] if block.weight is not None else None
        if value is None or value.name in found or value.is_graph_output():
            continue
        statistics = calibration.tensors.get(value.name or "")
        readers = [cores.get(u.node) if u.idx == 0 else None for u in value.uses()]
        norms = [None if b is None or b.op == "ConvTranspose" else channel_norms(b) for b in readers]
        known = [n for n in norms if n is not None]
        if statistics is None or statistics.masked or len(known) < len(norms):
            continue
        if len({n.size for n in known}) == 1:
            found[value.name or ""] = (1 if block.op == "Conv" else -1, np.sum(known, axis=0))
    return found


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
    found = {}
    for name, (_, weight) in weights.items():
        s = calibration.tensors[name]
        low, high = min(s.low, 0.0), max(s.high, 0.0)
        if high > low and weight.sum() > 0:
            found[name] = _Weighted(low=low, high=high, mass=np.zeros(_BINS))
    for values in inputs.values(list(found)):
        for name, histogram in found.items():
            axis, weight = weights[name]
            rows, step = _rows(values[name], axis)
            _add(histogram, rows, weight * step)
    for name, histogram in found.items():  # the extremes of all samples are known exactly: counted once each
        s, weight = calibration.tensors[name], weights[name][1]
        by_channel = s.channel_low.size == weight.size and s.channel_axis != 0
        ends = (s.channel_low, s.channel_high) if by_channel else (s.half_low, s.half_high)
        for end in ends:
            _add(histogram, end[None, :], weight if by_channel else np.full(end.size, weight.mean()))
    return found


def _rows(x: Floats, axis: int) -> tuple[Floats, int]:
    """``[rows, channels]`` of some of the positions of ``x``, and of how many each stands for."""
    step = max(1, x.size // _ROWS) | 1
    if axis == 1:
        flat = x.reshape(x.shape[0], x.shape[1], -1)[:, :, ::step]
        return flat.transpose(0, 2, 1).reshape(-1, x.shape[1]), step
    return x.reshape(-1, x.shape[-1])[::step], step


def _add(histogram: _Weighted, rows: Floats, weight: Doubles) -> None:
    width = (histogram.high - histogram.low) / histogram.mass.size
    places = ((rows - np.float32(histogram.low)) * np.float32(1.0 / width)).astype(np.int32)
    np.clip(places, 0, histogram.mass.size - 1, out=places)
    spread = np.broadcast_to(weight, rows.shape).reshape(-1)
    histogram.mass[:] += np.bincount(places.reshape(-1), weights=spread, minlength=histogram.mass.size)


def _session(model: OnnxModel, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    proto = graphs.read_proto(model.path)
    have = {o.name for o in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(
        helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in tensors if t not in have
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    folder = str(model.path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
