"""ONNX's own node tests through the TFLite compiler and the LiteRT interpreter.

    python tools/node_tests.py run [PATTERN…] [--write]   # --write: tests/ops/node_tests.json
    python tools/node_tests.py table                      # docs/tflite-operators.md from that file
    python tools/node_tests.py show NAME                  # one case: graph, data, what happens

TFLite files have fixed shapes, and some of their operators want shapes, axes or weights as constants. A case
is compiled with its inputs as inputs first; where that is refused, small integer inputs become constants, then
everything but the first input. Operators that only generate values out of a shape (Range, EyeLike …) are folded.
Which of them it was is part of the outcome. Tolerances are those that ONNX states with each case.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / "tests" / "ops" / "node_tests.json"
TABLE = ROOT / "docs" / "tflite-operators.md"
WORKER_SECONDS = 60

HOW = ("inputs", "small integers constant", "all but the first constant", "integers constant", "folded")
"""How the inputs were bound when the case was lowered, in the order of the attempts."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``status``: pass, refused, impossible (with the reason why no LiteRT file can express it), wrong,
    crash, error. ``how`` is one of :data:`HOW`."""

    status: str
    how: str = ""
    reason: str = ""


def cases() -> dict[str, Any]:
    """ONNX's node tests by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


def operator(case: Any) -> str:
    """The operator that a case tests; an ``_expanded`` case belongs to the operator that was expanded."""
    nodes = [n for n in case.model.graph.node if n.op_type != "Constant"]
    return nodes[0].op_type if len(nodes) == 1 else ""


def outcome(case: Any) -> Outcome:
    """Compile and run one case, in this process."""
    from edgekit.errors import UnsupportedError

    impossible = _impossible(case)
    if impossible:
        return Outcome(status="impossible", reason=impossible)
    refusal = ""
    for how, bound in _attempts(case):
        try:
            compiled = _compile(case.model, bound)
        except UnsupportedError as error:
            refusal = _reason(error)
            continue
        except Exception as error:  # noqa: BLE001 - an error of the compiler is an outcome
            return Outcome(
                status="error", how=how, reason=f"{type(error).__name__}: {error}".splitlines()[0][:200]
            )
        try:
            problem = _mismatch(case, compiled, bound)
        except (RuntimeError, ValueError) as error:
            problem = f"LiteRT: {error}".splitlines()[0][:200]
        return Outcome(status="wrong" if problem else "pass", how=how, reason=problem)
    beyond = any(limit in refusal for limit in _LIMITS)
    return Outcome(status="impossible" if beyond else "refused", reason=refusal)


def _attempts(case: Any) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What to bind as constants, in the order of :data:`HOW`; equal attempts come once."""
    given = _inputs(case)
    integers = {n: a for n, a in given.items() if a.dtype.kind in "iub" and a.ndim <= 1 and a.size <= 16}
    rest = dict(list(given.items())[1:])
    small = {n: a for n, a in integers.items() if n in rest}
    seen: list[set[str]] = []
    generates = all(n.op_type in _GENERATORS for n in case.model.graph.node)
    for how, bound in zip(HOW, ({}, small, rest, integers, given), strict=True):
        if set(bound) not in seen and (len(bound) < len(given) or not given or generates):
            seen.append(set(bound))
            yield how, dict(bound)


def _inputs(case: Any) -> dict[str, np.ndarray]:
    names = [i.name for i in case.model.graph.input]
    return {n: _array(a) for n, a in zip(names, case.data_sets[0][0], strict=False) if a is not None}


def _array(value: Any) -> np.ndarray:
    """Data sets hold arrays, and here and there ONNX tensors."""
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _compile(proto: Any, bound: Mapping[str, np.ndarray]) -> Any:
    import onnx
    import onnx_ir as ir
    from onnx import numpy_helper

    from edgekit.backends.tflite.compiler import compile_onnx

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    kept = [i for i in model.graph.input if i.name not in bound]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in bound.items())
    return compile_onnx(ir.from_proto(model))


def _mismatch(case: Any, compiled: Any, bound: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the outputs, or nothing."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=bytes(compiled.data), num_threads=1)
    signature = interpreter.get_signature_runner("serving_default")
    taken = signature.get_input_details()
    fed = {n: a.astype(taken[n]["dtype"]) for n, a in _inputs(case).items() if n not in bound and n in taken}
    results = signature(**fed)
    names = [o.name for o in case.model.graph.output]
    for name, expected in zip(names, case.data_sets[0][1], strict=True):
        problem = _different(np.asarray(results[name]), _array(expected), case.rtol, case.atol)
        if problem:
            return f"{name}: {problem}"
    return ""


def _different(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    if actual.shape != expected.shape:
        return f"shape {actual.shape} instead of {expected.shape}"
    if expected.dtype.kind not in "fV" and actual.dtype.kind != "f":
        unequal = int((actual != expected.astype(actual.dtype)).sum())
        return f"{unequal} of {expected.size} differ" if unequal else ""
    if expected.dtype.itemsize == 2:
        rtol = max(rtol, 2 * float(ml_dtypes.finfo(expected.dtype).eps))  # computed in float32, rounded once
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    near = np.isclose(a, e, rtol=rtol, atol=max(atol, 1e-6), equal_nan=True)
    return (
        "" if near.all() else f"{int((~near).sum())} of {near.size} differ, by {np.nanmax(np.abs(a - e)):.3g}"
    )


def _reason(error: Any) -> str:
    nodes = getattr(error, "nodes", ())
    texts = [f"{n.op}: {n.reason}" for n in nodes] or [error.message]
    return "; ".join(dict.fromkeys(texts))


_GENERATORS = frozenset(
    [
        "BlackmanWindow",
        "Constant",
        "ConstantOfShape",
        "EyeLike",
        "HammingWindow",
        "HannWindow",
        "MelWeightMatrix",
        "OptionalHasElement",
        "Range",
        "Shape",
        "Size",
    ]
)

# --- what no LiteRT file can express ----------------------------------------------------------------

_STRINGS = "LiteRT kernels have no string arithmetic"
_SEQUENCES = "TFLite has no sequence, optional or map type"
_RANDOM = "the result is random: there is nothing to compare"
_OPERATORS = {
    "ImageDecoder": "decodes JPEG, PNG and other files: the app's work, not a tensor operator",
    "Adam": "training",
    "Adagrad": "training",
    "Momentum": "training",
    "Gradient": "training",
    "Bernoulli": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomNormal": _RANDOM,
    "Multinomial": _RANDOM,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "StringConcat": _STRINGS,
    "RegexFullMatch": _STRINGS,
    "TfIdfVectorizer": _STRINGS,
    "LabelEncoder": _STRINGS,
}
_LIMITS = ("do not compute with uint64", "shifting uint64", "training mode")
"""Refusals that no other lowering could avoid."""

_SMALL_TYPES = {
    "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1", "UINT4", "UINT2",
    "INT2",
}  # fmt: skip


def _impossible(case: Any) -> str:
    import onnx

    graph = case.model.graph
    for node in graph.node:
        if node.op_type in _OPERATORS:
            return f"{node.op_type}: {_OPERATORS[node.op_type]}"
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return _SEQUENCES
        name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if name == "STRING":
            return _STRINGS
        if name in _SMALL_TYPES:
            return f"TFLite has no element type {name.lower()}"
        if name.startswith("COMPLEX"):
            return "complex tensors exist in TFLite for the FFT only"
    if any(a is None or not isinstance(a, np.ndarray | np.generic) for a in case.data_sets[0][0]):
        return _SEQUENCES
    return ""


# --- running many, each crash survived --------------------------------------------------------------


def run_all(names: Sequence[str], progress: bool = False) -> dict[str, Outcome]:
    """Outcomes by name. Cases run in a worker process; one that kills it or hangs is a crash."""
    outcomes: dict[str, Outcome] = {}
    left = list(names)
    while left:
        for name, result in _work(left):
            outcomes[name] = result
            if progress and result.status not in ("pass", "impossible"):
                print(f"{name:60} {result.status:8} {result.reason[:120]}", flush=True)
        left = left[len([n for n in left if n in outcomes]) :]
        if left:
            outcomes[left[0]] = Outcome(status="crash", reason="the process ended")
            if progress:
                print(f"{left[0]:60} crash", flush=True)
            left = left[1:]
    return outcomes


def _work(names: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
    """Outcomes of a fresh worker, in order, until it ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    worker = subprocess.Popen(
        [sys.executable, __file__, "worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        worker.stdin.write("\n".join(names) + "\n")
        worker.stdin.close()
        for line in worker.stdout:
            if line.startswith("{"):
                record = json.loads(line)
                yield record.pop("name"), Outcome(**record)


def _worker() -> None:
    import signal

    table = cases()
    for name in [line.strip() for line in sys.stdin if line.strip()]:
        signal.alarm(WORKER_SECONDS)  # ends the process: a case that hangs counts as a crash
        result = outcome(table[name])
        print(json.dumps({"name": name, **asdict(result)}), flush=True)


# --- the command line -------------------------------------------------------------------------------


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """One line: how many pass of those that LiteRT can express."""
    counts = collections.Counter(o.status for o in outcomes.values())
    possible = len(outcomes) - counts["impossible"]
    rate = 100 * counts["pass"] / possible if possible else 0.0
    parts = ", ".join(f"{n} {s}" for s, n in counts.most_common())
    return f"{counts['pass']} of {possible} expressible cases pass ({rate:.1f} %); {parts}"


def read_matrix() -> dict[str, Outcome]:
    """The recorded outcomes."""
    return {n: Outcome(**o) for n, o in json.loads(MATRIX.read_text(encoding="utf-8")).items()}


def write_matrix(outcomes: Mapping[str, Outcome]) -> None:
    """Record outcomes, one case a line."""
    lines = [
        f"  {json.dumps(n)}: {json.dumps({k: v for k, v in asdict(o).items() if v})}"
        for n, o in sorted(outcomes.items())
    ]
    MATRIX.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("patterns", nargs="*", default=["*"])
    run.add_argument("--write", action="store_true")
    commands.add_parser("table")
    commands.add_parser("worker")
    commands.add_parser("show").add_argument("name")
    options = parser.parse_args()

    if options.command == "worker":
        _worker()
    elif options.command == "show":
        _show(options.name)
    elif options.command == "table":
        from node_tests_table import write_table

        write_table(cases(), read_matrix(), TABLE)
    else:
        names = [n for n in cases() if any(fnmatch.fnmatch(n, p) for p in options.patterns)]
        outcomes = run_all(names, progress=True)
        print(summary(outcomes))
        if options.write:
            known = read_matrix() if MATRIX.is_file() and options.patterns != ["*"] else {}
            write_matrix(known | outcomes)
    return 0


def _show(name: str) -> None:
    import onnx

    case = cases()[name]
    print(onnx.printer.to_text(case.model))
    for label, arrays in zip(("input", "expected"), case.data_sets[0], strict=True):
        for array in arrays:
            print(label, getattr(array, "dtype", type(array)), getattr(array, "shape", ""), repr(array)[:400])
    print(outcome(case))


if __name__ == "__main__":
    sys.exit(main())
