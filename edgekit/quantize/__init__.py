"""Quantization of ONNX graphs: which tensors become integers, with which scale, and what stays float."""

from edgekit.quantize.driver import quantize
from edgekit.quantize.options import NodeReport, QuantizeOptions, QuantizeReport

__all__ = ["NodeReport", "QuantizeOptions", "QuantizeReport", "quantize"]
