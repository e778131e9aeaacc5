"""What ONNX operators are: one table of traits, asked by passes, quantizers, backends and comparisons alike.

After xDSL's operation traits. A fact that only one pass needs (what a fusion matches, how a count is made) stays with
that pass; where a user of the table wants fewer or more operators than a trait has, it says which and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from functools import cache
from typing import Protocol, TypeGuard, TypeVar

ONNX = ("", "ai.onnx")
"""The names of the standard domain."""


class Trait(Flag):
    """One fact about an operator."""

    VIEW = auto()
    """Gives its input's values in their order, in another shape."""
    PERMUTES = auto()
    """Gives its input's values in another order."""
    SELECTS = auto()
    """Gives some of its first input's values."""
    REPEATS = auto()
    """Gives its first input's values, some more than once."""
    PASSES = auto()
    """Gives back its input when a model is only run."""
    JOINS = auto()
    """Gives the values of all its inputs."""
    PADS = auto()
    """Gives its first input's values and a constant around them."""
    CONVOLVES = auto()
    """Multiplies patches of its first input by its second, a weight ``[outputs, inputs / groups, ...]`` (transposed
    ones: ``[inputs, outputs / groups, ...]``)."""
    MULTIPLIES_MATRICES = auto()
    """Multiplies its first input by its second, a weight where that is constant."""
    BINARY = auto()
    """Combines two tensors element by element, with broadcasting."""
    UNARY = auto()
    """Computes each value from one value, with nothing but attributes or scalars besides."""
    CLIPS = auto()
    """Limits its values: free for integers whose range ends at the limits."""
    ACTIVATION = auto()
    """Is what networks put behind a layer, and runtimes fuse into it."""
    POOLS = auto()
    """Reduces windows, or all, of the axes behind the channels."""
    REDUCES = auto()
    """Reduces given axes."""
    AVERAGES = auto()
    """Gives means, which are finer than what they are made of."""
    CHANNELS_AT_1 = auto()
    """Reads axis 1 of its first input as channels and what follows as space."""
    QUANTIZES = auto()
    """Goes between floats and integers with given scales."""
    INTEGER = auto()
    """Takes integers apart from their scales, or finds these: made for a runtime, not for Q/DQ."""

    WEIGHTED = CONVOLVES | MULTIPLIES_MATRICES
    CARRIES = VIEW | PERMUTES | SELECTS | REPEATS | PASSES | JOINS | PADS
    """Computes nothing: an output's values are inputs' values."""
    ELEMENTWISE = BINARY | UNARY


T = Trait
_CLIP = T.UNARY | T.CLIPS | T.ACTIVATION
_SMOOTH = T.UNARY | T.ACTIVATION
_WINDOW = T.POOLS | T.CHANNELS_AT_1

_TRAITS: Mapping[tuple[str, str], Trait] = {
    (domain, op): traits
    for domain, table in {
        "": {
            "Reshape": T.VIEW,
            "Flatten": T.VIEW,
            "Squeeze": T.VIEW,
            "Unsqueeze": T.VIEW,
            "Transpose": T.PERMUTES,
            "DepthToSpace": T.PERMUTES | T.CHANNELS_AT_1,
            "SpaceToDepth": T.PERMUTES | T.CHANNELS_AT_1,
            "Slice": T.SELECTS,
            "Split": T.SELECTS,
            "Gather": T.SELECTS,
            "GatherElements": T.SELECTS,
            "Expand": T.REPEATS,
            "Tile": T.REPEATS,
            "Identity": T.PASSES,
            "Dropout": T.PASSES,
            "Concat": T.JOINS,
            "Pad": T.PADS,
            "Conv": T.CONVOLVES | T.CHANNELS_AT_1,
            "ConvTranspose": T.CONVOLVES | T.CHANNELS_AT_1,
            "Gemm": T.MULTIPLIES_MATRICES,
            "MatMul": T.MULTIPLIES_MATRICES,
            "Add": T.BINARY,
            "Sub": T.BINARY,
            "Mul": T.BINARY,
            "Div": T.BINARY,
            "Min": T.BINARY,
            "Max": T.BINARY,
            "Pow": T.BINARY,
            "Relu": _CLIP,
            "Clip": _CLIP,
            "LeakyRelu": _SMOOTH,
            "PRelu": T.BINARY | T.ACTIVATION,  # the slope is a tensor
            "Elu": _SMOOTH,
            "Gelu": _SMOOTH,
            "HardSwish": _SMOOTH,
            "HardSigmoid": _SMOOTH,
            "Sigmoid": _SMOOTH,
            "Tanh": _SMOOTH,
            "Cast": T.UNARY,
            "Neg": T.UNARY,
            "Sqrt": T.UNARY,
            "Reciprocal": T.UNARY,
            "Erf": T.UNARY,
            "MaxPool": _WINDOW | T.SELECTS,
            "AveragePool": _WINDOW | T.AVERAGES,
            "LpPool": _WINDOW,
            "GlobalMaxPool": _WINDOW,
            "GlobalAveragePool": _WINDOW | T.AVERAGES,
            "ReduceMean": T.REDUCES | T.AVERAGES,
            "ReduceMax": T.REDUCES,
            "ReduceMin": T.REDUCES,
            "ReduceSum": T.REDUCES,
            "BatchNormalization": T.CHANNELS_AT_1,
            "InstanceNormalization": T.CHANNELS_AT_1,
            "GroupNormalization": T.CHANNELS_AT_1,
            "LRN": T.CHANNELS_AT_1,
            "Resize": T.CHANNELS_AT_1,
            "Upsample": T.CHANNELS_AT_1,
            "QuantizeLinear": T.UNARY | T.QUANTIZES,
            "DequantizeLinear": T.UNARY | T.QUANTIZES,
            "DynamicQuantizeLinear": T.INTEGER,
            "QLinearConv": T.INTEGER,
            "QLinearMatMul": T.INTEGER,
            "ConvInteger": T.INTEGER,
            "MatMulInteger": T.INTEGER,
        },
        # What ONNX Runtime's optimizer makes of Q/DQ.
        "com.microsoft": {
            "QGemm": T.INTEGER,
            "QAttention": T.INTEGER,
            "MatMulIntegerToFloat": T.INTEGER,
            "DynamicQuantizeMatMul": T.INTEGER,
            "DynamicQuantizeLSTM": T.INTEGER,
        },
    }.items()
    for op, traits in table.items()
}


class Operator(Protocol):
    """A node of onnx_ir or of ONNX's protobuf."""

    @property
    def op_type(self) -> str:
        """The operator's name in its domain."""

    @property
    def domain(self) -> str:
        """Whose operator it is; empty for ONNX's own."""


N = TypeVar("N", bound=Operator)


RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""What draws random numbers."""


def is_op(node: N | None, *names: str) -> TypeGuard[N]:
    """Whether a node is one of ONNX's own operators ``names``."""
    return node is not None and node.op_type in names and node.domain in ONNX


def has(node: Operator, traits: Trait) -> bool:
    """Whether a node's operator has at least one of ``traits``."""
    domain = "" if node.domain in ONNX else node.domain
    return bool(_TRAITS.get((domain, node.op_type), Trait(0)) & traits)


@cache
def named(traits: Trait, domain: str = "") -> frozenset[str]:
    """The operators of a domain that have at least one of ``traits``."""
    return frozenset(op for (owner, op), known in _TRAITS.items() if owner == domain and known & traits)
