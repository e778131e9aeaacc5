"""What can be asked of quantization, and what it tells about its result. Cheap to import: no numpy, no onnx."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgekit.core.config import Options, target_options
from edgekit.errors import UnknownNameError, UsageError
from edgekit.types import FLOAT8, Scheme, Target

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
"""The range estimators that need nothing but calibration's statistics."""

WEIGHTED_MSE = "weighted-mse"
"""Least squared error at the outputs of the layers that read a tensor: see :mod:`edgekit.quantize.inputs`."""

RANGES = (*METHODS, WEIGHTED_MSE)
"""All range estimators."""

CORRECTIONS = ("equalize", "smooth", "bias", "rounding", "gptq")
"""Weight corrections in the order in which they are applied. ``rounding`` is for INT8 weights, ``gptq`` the same for
INT4 weights in blocks."""

STANDARD = ("smooth", "bias", "gptq")
"""The corrections that are applied unless told otherwise, where they fit the scheme: cheap for what they give, and
without risk. Smoothing leaves alone what does not gain 2 dB by it, convolutional networks always."""


def applicable(scheme: Scheme) -> tuple[str, ...]:
    """The corrections that can do something for a scheme."""
    if scheme.weight == FLOAT8:
        return ()
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

    @classmethod
    def of(cls, options: Options, target: Target) -> QuantizeOptions:
        """What the user's options, the ``--set`` settings among them, and a target's row ask for."""
        settings = target_options(target, options.set)
        return cls(
            method=options.method,
            exclude=options.exclude,
            int16=options.int16,
            corrections=options.corrections,
            weight_bits=target.scheme.weight_bits if target.scheme else cls.weight_bits,
            block_size=int(settings.get("block_size", cls.block_size)),
            float_outputs=settings.get("io_dtype", target.io_dtype) == "float32",
        )

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


class Cause(StrEnum):
    """Why a node stays in float."""

    EXCLUDED = "excluded"
    """The user, or the accuracy guard, wants it."""
    UNSUPPORTED = "unsupported"
    """There is no integer form for it: no kernel, no range, or a weight that is no constant."""
    NEIGHBOURS = "neighbours"
    """It could be quantized, but what it reads or what reads it is float."""
    FRONT = "front"
    """It belongs to a spectral front end, whose energies integers cannot hold: see :mod:`edgekit.quantize.fronts`."""
    ISLAND = "island"
    """Integers would only round it, or take longer: see :mod:`edgekit.quantize.islands`."""


ON_PURPOSE = (Cause.EXCLUDED, Cause.FRONT, Cause.ISLAND)
"""Float is what was wanted, not what was left."""


@dataclass(frozen=True)
class InFloat:
    """That a node stays in float: the cause for programs, ``reason`` for people."""

    cause: Cause
    reason: str

    @classmethod
    def excluded(cls, pattern: str) -> InFloat:
        """By a pattern of the options."""
        return cls(Cause.EXCLUDED, f"excluded by {pattern!r}")

    @classmethod
    def unsupported(cls, reason: str) -> InFloat | None:
        """There is no integer form, for this ``reason``; ``None`` where the reason is empty."""
        return cls(Cause.UNSUPPORTED, reason) if reason else None


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What became of one node of the float graph.

    ``activation`` is the type of a quantized node's activations, ``cause`` and ``reason`` say why another stayed in
    float. ``macs`` is the number of multiply-accumulates where the shapes are known, else 0;
    ``weights`` how many values its constant weight has.
    """

    node: str
    op: str
    module_path: str
    quantized: bool
    activation: str = ""
    cause: Cause | None = None
    reason: str = ""
    macs: int = 0
    weights: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What quantization did. ``notes`` are facts for the manifest, one sentence each; ``activations`` are the float
    graph's tensors that were given a calibrated range; ``four_bits``: of INT4 weights, the part (0 to 1) of those that
    became integers which has four bits and not eight."""

    method: str
    corrections: tuple[str, ...]
    nodes: tuple[NodeReport, ...]
    notes: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    four_bits: float | None = None

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

    def of(self, cause: Cause) -> float:
        """The part of all multiply-accumulates, 0 to 1, that is in float for one ``cause``."""
        total = sum(n.macs for n in self.nodes)
        return sum(n.macs for n in self.nodes if n.cause is cause) / total if total else 0.0

    def kept_out(self, activation: str) -> float:
        """The part of all multiply-accumulates, 0 to 1, that was given another precision on purpose: excluded, a
        front end, an island, or on INT16 activations where the scheme has another ``activation``."""
        total = sum(n.macs for n in self.nodes)
        out = sum(
            n.macs
            for n in self.nodes
            if n.cause in ON_PURPOSE or (n.activation == "int16" and activation != "int16")
        )
        return out / total if total else 0.0

    def weights_kept_out(self) -> float:
        """The part of all weights, 0 to 1, that was left in float on purpose."""
        total = sum(n.weights for n in self.nodes)
        out = sum(n.weights for n in self.nodes if n.cause in ON_PURPOSE)
        return out / total if total else 0.0
