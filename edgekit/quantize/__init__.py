"""Quantization of ONNX graphs: which tensors become integers, with which scale, and what stays float."""

from edgekit.quantize.driver import quantize
from edgekit.quantize.guard import Evaluation, Guarded, guard
from edgekit.quantize.options import CORRECTIONS, NodeReport, QuantizeOptions, QuantizeReport
from edgekit.quantize.sensitivity import LayerSensitivity, Quantizing, sensitivity

__all__ = [
    "CORRECTIONS",
    "Evaluation",
    "Guarded",
    "LayerSensitivity",
    "NodeReport",
    "QuantizeOptions",
    "QuantizeReport",
    "Quantizing",
    "guard",
    "quantize",
    "sensitivity",
]
