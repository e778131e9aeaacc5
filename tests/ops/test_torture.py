"""A selection of the torture modules through whole builds for three runtimes, and the tool's own judgement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("ai_edge_litert")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from torture import CASES, judge, stages  # noqa: E402
from torture.case import Case, F  # noqa: E402

from edgekit.errors import BackendError, ExportError, UnsupportedNode, UnsupportedOperatorsError  # noqa: E402

SELECTION = (
    "attention/slopes",
    "complex/polar",
    "control/cond",
    "dynamic/masked-mean",
    "form/none",
    "hook/keywords",
    "in-place/fills",
    "index/put-accumulate",
    "order/quantile",
    "pool/adaptive-maximum",
    "recurrent/packed",
    "resize/bicubic-antialias",
    "type/autocast",
)
"""One of each thing that has gone wrong in some exporter."""


@pytest.fixture(scope="module", autouse=True)
def _one_registry() -> None:
    stages.share_the_registry()


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.filterwarnings("ignore")
def test_right_on_three_runtimes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    results = stages.run(CASES[name], ["fp32"])
    assert {t: (r["status"], r.get("message", "")) for t, r in results.items()} == {
        t: (stages.RIGHT, _said(name, t)) for t in stages.TARGETS["fp32"]
    }


def _said(name: str, target: str) -> str:
    return "fixed shapes" if CASES[name].other is not None and target.startswith("tflite") else ""


class Twice(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


CASE = Case(name="a/b", build=Twice, inputs=F(2, 3), reason=("state",))


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        ([[1.0, 2.0]], ""),
        ([[1.0, 2.1]], "output 0: 27.0 dB"),
        ([[1.0, np.nan]], "output 0: -inf dB"),
        ([[1.0, 2.0], [3.0]], "shapes [(2,), (1,)] instead of [(2,)]"),
    ],
)
def test_what_is_far_is_told(got: list[list[float]], problem: str) -> None:
    arrays = [np.array(a, np.float32) for a in got]
    assert judge.far(arrays, [np.array([1.0, 2.0], np.float32)], "fp32", 60.0)[0] == problem


def test_integers_are_compared_one_by_one() -> None:
    few, many = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    assert judge.far([many], [few], "fp32", 60.0)[0] == "output 0: 75% of its elements are equal"
    assert judge.far([few], [few], "fp32", 60.0)[0] == ""


def test_a_refusal_that_names_nothing_is_none() -> None:
    node = UnsupportedNode(op="Sort", node="sort", reason="no kernel")
    statuses = [
        stages._refused(CASE, error)["status"]
        for error in (
            UnsupportedOperatorsError("tflite-fp32", [node]),
            ExportError("operator aten::sort cannot be exported", hint=""),
            ExportError("forward keeps state", hint=""),
            ExportError("the module cannot be exported", hint="try something else"),
            BackendError("the runtime failed", hint=""),
        )
    ]
    assert statuses == [stages.REFUSED, stages.REFUSED, stages.REFUSED, stages.UNCLEAR, stages.DEFECT]


def test_pytorch_is_called_as_a_user_calls_it() -> None:
    assert np.array_equal(judge.reference(Twice(), {"x": torch.ones(2)})[0], [2, 2])
    assert np.array_equal(judge.reference(Twice(), (torch.ones(2),))[0], [2, 2])


def test_there_are_modules_of_every_family() -> None:
    assert len(CASES) >= 120
    assert len({c.family for c in CASES.values()}) >= 20
