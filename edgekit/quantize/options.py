"""What can be asked of quantization, and what it tells about its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgekit.errors import UnknownNameError, UsageError
from edgekit.quantize.calibrate import METHODS
from edgekit.types import Scheme

WEIGHTED_MSE = "weighted-mse"
"""Least squared error at the outputs of the layers that read a tensor: see :mod:`edgekit.quantize.inputs`."""

RANGES = (*METHODS, WEIGHTED_MSE)
"""The range estimators: those of calibration, and the one that needs the weights too."""

CORRECTIONS = ("equalize", "smooth", "bias", "rounding", "gptq")
"""Weight corrections in the order in which they are applied. ``rounding`` is for INT8 weights, ``gptq`` the same for
INT4 weights in blocks."""

STANDARD = ("smooth", "bias", "gptq")
"""The corrections that are applied unless told otherwise, where they fit the scheme: cheap for what they give, and
without risk. Smoothing leaves alone what does not gain 2 dB by it, convolutional networks always."""


def applicable(scheme: Scheme) -> tuple[str, ...]:
    """The corrections that can do something for a scheme."""
    if scheme.quantizer == "qdq":
        return tuple(c for c in CORRECTIONS if c != "gptq")
    return ("gptq",) if scheme.quantizer == "weights" and scheme.weight == "int4" else ()


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How to quantize, whatever the target.

    ``method`` is a range estimator of :data:`RANGES`, or ``auto``. ``exclude`` keeps
    nodes in float and ``int16`` gives nodes INT16 activations (targets that have them): names of nodes,
    module paths (with everything below), operator types or output tensors, ``*`` and ``?`` allowed.
    ``corrections`` are of :data:`CORRECTIONS`, or ``auto``; of :data:`STANDARD`, what needs samples is left
    out where there are none. ``weight_bits`` 7 halves the range of INT8
    weights for x86 CPUs without VNNI, whose UINT8 x INT8 products saturate in 16 bits. ``block_size`` is
    the number of INT4 weights that share a scale. ``float_outputs``: the model's outputs are read as float, so an
    average that ends there need not be cut to 8 bits.
    """

    method: str = "auto"
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    int16: tuple[str, ...] = ()
    corrections: tuple[str, ...] = STANDARD
    weight_bits: int = 8
    block_size: int = 32
    float_outputs: bool = True

    def __post_init__(self) -> None:
        if self.method not in (*RANGES, "auto"):
            raise UnknownNameError("calibration method", self.method, (*RANGES, "auto"))
        for name in self.corrections:
            if name not in (*CORRECTIONS, "auto"):
                raise UnknownNameError("weight correction", name, (*CORRECTIONS, "auto"))
        if self.weight_bits not in (7, 8):
            raise UsageError(f"weight_bits is {self.weight_bits}", hint="use 8, or 7 for CPUs without VNNI")
        if not 50.0 < self.percentile <= 100.0:
            raise UsageError(f"percentile {self.percentile} is not in (50, 100]", hint="99.99 is usual")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(
                f"block_size {self.block_size} is not a power of two of at least 16", hint="use 32"
            )


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What became of one node of the float graph. ``reason`` says why it stayed float; else it is empty.

    ``macs`` is the number of multiply-accumulates where the shapes are known, else 0.
    """

    node: str
    op: str
    module_path: str
    quantized: bool
    activation: str = ""
    reason: str = ""
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What quantization did. ``notes`` are facts for the manifest, one sentence each."""

    method: str
    corrections: tuple[str, ...]
    nodes: tuple[NodeReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[NodeReport, ...]:
        """The nodes that compute on integers."""
        return tuple(n for n in self.nodes if n.quantized)

    @property
    def floats(self) -> tuple[NodeReport, ...]:
        """The nodes that compute in float."""
        return tuple(n for n in self.nodes if not n.quantized)

    @property
    def share(self) -> float:
        """The part of all multiply-accumulates that is quantized, 0 to 1."""
        total = sum(n.macs for n in self.nodes)
        return sum(n.macs for n in self.quantized) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values, for the manifest."""
        return dataclasses.asdict(self) | {"share": self.share}
