"""Between the compiler and edgekit's stages: the file on disk, what the manifest says, placement."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.backends.tflite.compiler import Compiled
from edgekit.types import Fallback, Lowered, Placement, Target

MINIMUM_RUNTIME = "LiteRT 2.1 (TensorFlow Lite 2.17)"


def write_file(path: Path, data: memoryview) -> None:
    """Write under a temporary name, then rename."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        part = Path(f.name)
        try:
            f.write(data)
            f.close()
            part.chmod(0o644)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def lowered(compiled: Compiled, file: str) -> Lowered:
    """The compiled model as the manifest records it."""
    report = compiled.report
    notes = [f"{sum(report.operators.values())} operators, {report.transposes} transpositions"]
    notes += [f"{f.op} ×{f.count} in float: {f.reason}" for f in report.left_in_float]
    return Lowered(
        files=(file,),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        minimum_runtime=MINIMUM_RUNTIME,
        notes=tuple(notes),
        details={
            "operators": dict(report.operators),
            "transposes": report.transposes,
            "fusions": dict(report.fusions),
            "codes": list(report.codes),
            "macs": list(report.macs),
            "left_in_float": [
                {"op": f.op, "count": f.count, "reason": f.reason, "nodes": list(f.nodes)}
                for f in report.left_in_float
            ],
            "origins": {
                name: {"node": o.node, "op": o.op, "module": o.module} for name, o in report.origins.items()
            },
        },
    )


def read_placement(target: Target, lowered: Lowered, raw: Mapping[str, Any]) -> Placement:
    """Share of MACs inside the delegate; see the package's docstring for ``raw``."""
    codes: Sequence[str] = lowered.details.get("codes", ())
    macs: Sequence[int] = lowered.details.get("macs", ())
    nodes = {int(n["index"]): n for n in raw.get("nodes", ())}
    taken = delegated(raw.get("nodes", ()))
    total, inside = sum(macs), sum(m for i, m in enumerate(macs) if i in taken)
    outside: dict[str, list[int]] = {}
    for i, code in enumerate(codes):
        if i not in taken and i in nodes:
            outside.setdefault(code, []).append(i)
    floats = [Fallback(**f | {"nodes": tuple(f["nodes"])}) for f in lowered.details.get("left_in_float", ())]
    not_delegated = [
        Fallback(
            op=code,
            count=len(where),
            reason="runs in LiteRT's built-in kernel, not in the XNNPACK delegate",
            share=sum(macs[i] for i in where) / total if total else 0.0,
        )
        for code, where in sorted(outside.items())
    ]
    return Placement(
        precision=str(target.precision),
        share=inside / total if total else (1.0 if taken else None),
        operators=len(codes),
        partitions=int(raw["partitions"]) if "partitions" in raw else None,
        kernels=dict(Counter(str(n.get("op", "")) for n in nodes.values())),
        fallbacks=tuple(floats + not_delegated),
    )


def delegated(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the operators that a delegate replaced.

    An operator is inside a partition if every path from it leads to a delegate's outputs: its outputs are
    written by a DELEGATE node, or are read only by operators inside. Without tensor lists, ``delegate``
    of each node is believed.
    """
    plain = [n for n in nodes if n.get("op") != "DELEGATE"]
    if any(n.get("delegate") not in (None, False) for n in plain):
        return {int(n["index"]) for n in plain if n.get("delegate") not in (None, False)}
    written = {int(t) for n in nodes if n.get("op") == "DELEGATE" for t in n.get("outputs", ())}
    if not written:
        return set()
    read_outside = {int(t) for n in nodes if n.get("op") == "DELEGATE" for t in n.get("inputs", ())}
    readers: dict[int, list[int]] = {}
    for n in plain:
        for t in n.get("inputs", ()):
            readers.setdefault(int(t), []).append(int(n["index"]))
    inside: set[int] = set()
    for n in reversed(plain):
        outputs = [int(t) for t in n.get("outputs", ())]
        if any(t in written for t in outputs) or (
            not any(t in read_outside for t in outputs)
            and any(readers.get(t) for t in outputs)
            and all(r in inside for t in outputs for r in readers.get(t, ()))
        ):
            inside.add(int(n["index"]))
    return inside
