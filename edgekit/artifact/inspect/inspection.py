"""What is known of a model file once it was read."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import tables
from edgekit.artifact.summary import size
from edgekit.types import Json, TensorSpec


class Scales(enum.StrEnum):
    """What shares one scale: all of a tensor, each channel, or each block of values along the inputs."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"


class Takes(enum.StrEnum):
    """Whether a target can be built from a file: ``UNCHECKED`` is what only the build can tell."""

    YES = "yes"
    NO = "no"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """One weight of two or more axes, as the file stores it.

    ``layer`` is the node that computes with it and ``op`` that node's operator (both empty where the file has no
    graph, or nothing reads it); ``dtype`` the type in which the values are stored, ``count`` how many values and
    ``size`` how many bytes; ``scales`` is ``None`` for floats, ``block`` the number of values that share a scale (0
    where scales are not by block). ``input`` is the type in which the layer's first input comes: an integer type where
    it was quantized.
    """

    name: str
    layer: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    size: int
    scales: Scales | None = None
    block: int = 0
    input: str = ""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Whether ``target`` can be built from a file, and why not, or under which condition."""

    target: str
    takes: Takes
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is in a model file. Nothing of it was executed.

    ``size`` in bytes, of all files that belong together. ``operators`` counts nodes by type, ``weights`` bytes by the
    type in which they are stored. ``parameters`` are the values that the model computes with: neither shapes, indices
    and options of operators, nor scales, zero points and running statistics. ``macs``: multiply-accumulates of one
    inference, dynamic axes counted as 1. Both are ``None`` where the format does not tell. ``layers`` has every weight
    of two or more axes, ``targets`` what can be built from the file (empty where nobody asked), ``notes`` what cannot
    be told and why, and ``facts`` what is the format's own, ``custom`` the operators of domains that are neither
    ONNX's nor ONNX Runtime's and that the file does not define.
    """

    path: Path
    format: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    macs: int | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)
    parameters: int | None = None
    layers: tuple[StoredWeight, ...] = ()
    targets: tuple[Reach, ...] = ()
    notes: tuple[str, ...] = ()
    custom: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return _html(self) + tables.listed(self.notes)


def _html(found: Inspection) -> str:
    """What a model file holds, as HTML: a line of figures, then tensors, operators and weights."""
    facts = [f"{found.path.name}: {found.format}, {size(found.size)}"]
    facts += [f"{found.parameters:,} parameters"] if found.parameters is not None else []
    facts += [f"{found.macs:,} multiply-accumulates"] if found.macs is not None else []
    tensors = [
        (kind, s.name, s.dtype, " × ".join(map(str, s.shape)) or "scalar")
        for kind, specs in (("input", found.inputs), ("output", found.outputs))
        for s in specs
    ]
    weights = [
        (
            w.name,
            w.op or tables.NOTHING,
            w.dtype,
            tables.NOTHING if w.scales is None else f"per {w.scales}",
            size(w.size),
        )
        for w in found.layers
    ]
    return tables.titled(
        ", ".join(facts),
        {
            "tensors": tables.known(("", "name", "type", "shape"), tensors),
            "operators": tables.known(
                ("operator", "count"), [(o, f"{n:,}") for o, n in found.operators.items()]
            ),
            "weights": tables.known(("weight", "operator", "type", "scales", "size"), weights),
        },
    )


@dataclass(kw_only=True)
class Tally:
    """Weights as they are found: their parameters, and bytes by type."""

    parameters: int = 0
    weights: Counter[str] = field(default_factory=Counter)
    layers: list[StoredWeight] = field(default_factory=list)

    def add(self, weight: StoredWeight) -> None:
        """A parameter; it is a layer's where it has two axes or more."""
        self.parameters += weight.count
        if len(weight.shape) >= 2:
            self.layers.append(weight)


def times_read(shape: tuple[int, ...], readers: int) -> int:
    """How many parameters a constant stands for. Exporters store equal vectors once (biases that are all zero): these
    count for each reader, a matrix that is read twice is one that is shared."""
    return math.prod(shape) * (readers if len(shape) == 1 else 1)


def most_common(names: Iterable[str]) -> dict[str, int]:
    """How often each comes, the most frequent first."""
    return dict(Counter(names).most_common())


OPEN_AXES = "dynamic axes count as 1 in the multiply-accumulates"
"""The note on a model whose inputs have some."""


def open_axes(inputs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """The note where there is something to say."""
    return () if all(spec.is_static for spec in inputs) else (OPEN_AXES,)


def uncounted(macs: Iterable[int | None]) -> tuple[str, ...]:
    """The note on nodes whose shapes are not known."""
    missing = sum(count is None for count in macs)
    if not missing:
        return ()
    nodes = "node is" if missing == 1 else "nodes are"
    return (f"{missing} multiplying {nodes} not counted: their shapes are not known",)
