"""Long recurrent sequences run as a loop: the same numbers, a file whose size does not depend on the length."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, compiled, graph

from edgekit.errors import UnsupportedOperatorsError

RNG = np.random.default_rng(17)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BATCH, WIDTH, HIDDEN = 2, 6, 5


def weights(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape) * 0.4, np.float32)


def network(
    kind: str,
    steps: int,
    direction: str = "forward",
    *,
    lengths: object = None,
    inputs: tuple[str, ...] = (),
    **a,
) -> onnx.ModelProto:
    """One recurrent node; ``inputs`` are those given at run time besides ``x``, ``lengths`` is an array or "input"."""
    d, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    state = (d, BATCH, HIDDEN)
    shapes = {"x": (steps, BATCH, WIDTH), "w": (d, rows, WIDTH), "r": (d, rows, HIDDEN), "b": (d, 2 * rows)}
    shapes |= {"h": state} | ({"c": state, "p": (d, 3 * HIDDEN)} if kind == "LSTM" else {})
    given = {"x": shapes["x"]} | {n: shapes[n] for n in inputs}
    constants = {n: weights(*s) for n, s in shapes.items() if n not in given}
    names = ["x", "w", "r", "b", "lengths" if lengths is not None else "", *list(shapes)[4:]]
    if isinstance(lengths, np.ndarray):
        constants["lengths"] = lengths.astype(np.int32)
    elif lengths is not None:
        given["lengths"] = (BATCH,)
    outputs = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, names, outputs, direction=direction, hidden_size=HIDDEN, **a)
    return graph([node], given, outputs, constants, types={"lengths": TensorProto.INT32})


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_two_hundred_steps(kind, direction):
    made, _ = check(network(kind, 200, direction, inputs=("h",)))
    longer = compiled(network(kind, 2000, direction, inputs=("h",)))
    assert made.report.operators["WHILE"] == (2 if direction == "bidirectional" else 1)
    assert len(made.data) < 16_000
    assert len(longer.data) - len(made.data) < 200


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("known", [True, False])
def test_sequences_that_end_early(kind, known):
    lengths = np.array([200, 77])
    model = network(kind, 200, "bidirectional", lengths=lengths if known else "input")
    feeds = {"x": weights(200, BATCH, WIDTH)} | ({} if known else {"lengths": lengths.astype(np.int32)})
    check(model, feeds)


def test_a_gru_that_resets_behind_its_product():
    check(network("GRU", 90, linear_before_reset=1))


def test_short_sequences_are_unrolled():
    made, _ = check(network("LSTM", 64))
    assert "WHILE" not in made.report.operators


def test_weights_of_run_time_are_unrolled_or_refused():
    feeds = {"x": weights(70, BATCH, WIDTH), "r": weights(1, HIDDEN, HIDDEN)}
    made, _ = check(network("RNN", 70, inputs=("r",)), feeds)
    assert "WHILE" not in made.report.operators
    with pytest.raises(UnsupportedOperatorsError, match="weights that are no constants"):
        compiled(network("RNN", 3000, inputs=("r",)))


def test_weights_stored_as_float16():
    model = network("LSTM", 100)
    made, run = check(model, tolerance=2e-2, weights="float16")
    assert "WHILE" in run.ops
    assert made.report.operators["DEQUANTIZE"] >= 2
