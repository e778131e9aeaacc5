"""What LiteRT really executes: which operators the delegate took, and in what they multiply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from edgekit.backends.base import reported
from edgekit.core.structure import structure
from edgekit.graph.macs import computes_integers
from edgekit.types import Fallback, Json, Lowered, Placement, Precision, Target


class Node(TypedDict):
    """One operator as the runner reports it. ``delegate`` is the partition that runs it."""

    index: int
    op: str
    delegate: int | None


_INTEGERS = ("int8", "int4")
_DYNAMIC = "integer weights"
_PROMISED = {
    Precision.FP32: "float32",
    Precision.INT8: "int8",
    Precision.INT16X8: "int16",
    Precision.INT8_DYNAMIC: _DYNAMIC,
    Precision.INT8_WEIGHTS: _DYNAMIC,
    Precision.INT4_WEIGHTS: _DYNAMIC,
    Precision.FP16: "float16",
}
"""What a target's promise means for one operator, see :attr:`_Executed.arithmetic`."""


_BUILTIN = frozenset({"CONV_3D"})
"""Products that XNNPACK has no kernels for: LiteRT's own compute them, in the types that the file says."""
_WITH_CONSTANTS = frozenset({"FULLY_CONNECTED"})
"""Products that XNNPACK has kernels for where the weights are constant."""
_CONVERT = frozenset({"QUANTIZE", "DEQUANTIZE", "CAST"})


@dataclass(frozen=True, slots=True)
class _Nested:
    """One product in the body of a WHILE or an IF, as the compiler's report has it."""

    code: str
    macs: int
    type: str
    weight: str


@dataclass(frozen=True, slots=True)
class _Executed:
    """One operator of the file: ``activation`` and ``weight`` as the compiler's report has them."""

    code: str
    macs: int
    activation: str
    weight: str
    delegated: bool

    @property
    def arithmetic(self) -> str:
        """The type it computes in; ``integer weights``: integer products, activations quantized as it goes."""
        hybrid = self.activation == "float32" and self.weight in _INTEGERS
        return _DYNAMIC if hybrid else self.activation


def read_placement(target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """Share of MACs that keep the target's promise, and why the others do not.

    ``raw`` is described in the package's docstring. An operator has to be in the delegate to count, but for what
    only the builtin kernels have, and for float32, which they compute as well, if slower. Float16 is a storage
    format on CPUs: XNNPACK expands the weights when it loads the file.
    """
    nodes = reported(raw, "nodes", list[Node])
    floats = structure(tuple[Fallback, ...], lowered.details.get("left_in_float", ()), where="left_in_float")
    codes = structure(tuple[str, ...], lowered.details.get("codes", ()), where="codes")
    if nodes is None:
        note = "this runtime does not tell what the delegate took"
        return Placement(
            precision=str(target.precision),
            share=None,
            operators=len(codes),
            fallbacks=floats,
            notes=(note,),
        )
    executed = _executed(lowered.details, codes, delegated(nodes))
    operators = executed
    executed = [*executed, *_nested(lowered.details)]
    total = sum(e.macs for e in executed)
    # MACs and not operators: a network is one big convolution and a hundred small moves.
    right = sum(e.macs for e in executed if not _shortfall(e, target))
    return Placement(
        precision=str(target.precision),
        share=right / total if total else _without_products(operators, target),
        operators=len(codes),
        partitions=reported(raw, "delegates", int),
        kernels=dict(Counter(codes)),
        fallbacks=(*floats, *_fallbacks(executed, target, total)),
        notes=tuple(_notes(operators, target)),
    )


def delegated(nodes: Sequence[Node]) -> set[int]:
    """Indices of the operators that a delegate replaced."""
    return {n["index"] for n in nodes if n.get("delegate") is not None}


def _executed(details: Mapping[str, Json], codes: Sequence[str], taken: set[int]) -> list[_Executed]:
    macs = structure(tuple[int, ...], details.get("macs", ()), where="macs")
    types, weights = (
        structure(tuple[str, ...], details.get(name, ()), where=name) for name in ("types", "weights")
    )
    rows = zip(codes, macs, types, weights, strict=True)
    return [_Executed(c, m, t, w, i in taken) for i, (c, m, t, w) in enumerate(rows)]


def _nested(details: Mapping[str, Json]) -> Iterator[_Executed]:
    """The products in the bodies of WHILE and IF. What runs them the runtime does not tell, but their types are the
    file's."""
    for n in structure(tuple[_Nested, ...], details.get("nested", ()), where="nested"):
        yield _Executed(n.code, n.macs, n.type, n.weight, delegated=True)


def _without_products(operators: Sequence[_Executed], target: Target) -> float | None:
    """The share of a model without multiply-accumulates: where integers were promised there must be some."""
    if not computes_integers(target):
        return None
    return float(any(e.activation in ("int8", "int16") and e.code not in _CONVERT for e in operators))


def _shortfall(e: _Executed, target: Target) -> str:
    """Why an operator does not keep the promise; empty if it does."""
    if not e.delegated and not _in_builtin(e, target):
        return "runs in LiteRT's builtin kernel, not in the delegate"
    if not e.macs or e.arithmetic == _PROMISED.get(target.precision):
        return ""
    if target.precision is Precision.INT8 and e.arithmetic == _DYNAMIC and e.weight == "int8":
        return ""  # integer products all the same; the notes count them
    if target.precision is Precision.FP16:
        return "no float16 arithmetic in this delegate: weights are expanded at load, computed in float32"
    if target.scheme is not None and target.scheme.quantizer == "weights":
        return _not_integers(e)
    if e.arithmetic == _DYNAMIC:
        return f"{e.weight} weights under float activations, which are quantized on every run"
    return f"computed in {e.activation}"


def _in_builtin(e: _Executed, target: Target) -> bool:
    """Whether LiteRT's own kernel keeps the promise, too."""
    own = e.code in _BUILTIN or (e.code in _WITH_CONSTANTS and not e.weight)
    return own or target.precision in (Precision.INT16X8, Precision.FP32)


def _not_integers(e: _Executed) -> str:
    if not e.weight:
        return f"no constant weights: computed in {e.activation}"
    if e.weight.endswith("expanded"):
        return f"{e.weight.split()[0]} weights are expanded to float32 at load: computed in {e.activation}"
    return f"weights are {e.weight} in the file: computed in {e.activation}"


def _fallbacks(executed: Sequence[_Executed], target: Target, total: int) -> Iterator[Fallback]:
    groups: dict[tuple[str, str], list[_Executed]] = {}
    for e in executed:
        reason = _shortfall(e, target)
        if reason:
            groups.setdefault((e.code, reason), []).append(e)
    for (code, reason), members in sorted(groups.items()):
        share = sum(e.macs for e in members) / total if total else 0.0
        yield Fallback(op=code, count=len(members), reason=reason, share=share)


def _notes(executed: Sequence[_Executed], target: Target) -> Iterator[str]:
    if target.precision is Precision.INT16X8:
        outside = sum(not e.delegated for e in executed)
        yield (
            f"XNNPACK has no kernels for int16 activations: {outside} of {len(executed)} operators run in "
            "LiteRT's builtin kernels"
        )
    dynamic = sum(e.arithmetic == _DYNAMIC for e in executed)
    if target.precision is Precision.INT8 and dynamic:
        yield (
            f"{dynamic} products quantize their input anew on every run, row by row, and give floats: only float "
            "operators read them"
        )
    loops = sum(e.code in ("WHILE", "IF") for e in executed)
    if loops:
        yield f"the runtime does not tell what runs the bodies of {loops} WHILE and IF: their types are the file's"
    if target.precision is Precision.INT16X8:
        return
    builtin = sorted({e.code for e in executed if e.macs and not e.delegated and _in_builtin(e, target)})
    if builtin:
        yield f"XNNPACK does not take {', '.join(builtin)} here: LiteRT's builtin kernels, which are slower, do"
