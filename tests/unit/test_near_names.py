"""Hints for names that are not there, figures that differ from their limits, and what ended a process."""

from __future__ import annotations

import pytest

from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.limits import Limits
from edgekit.artifact.proof import Share, agreement, apart, percent
from edgekit.core.contained import Job
from edgekit.core.contained import Limits as JobLimits
from edgekit.core.stops import Left
from edgekit.errors import FactoryError, SourceError, near_names
from edgekit.load import usercode
from edgekit.load.spec import parse
from edgekit.types import Parity, Tolerance, Verdict


def test_a_folder_is_not_listed_whole(tmp_path):
    for number in range(200):
        (tmp_path / f"weights-{number}.bin").touch()
    with pytest.raises(SourceError) as raised:
        parse(str(tmp_path / "x.onnx"))
    assert len(raised.value.hint) < 150
    (tmp_path / "y.onnx").touch()
    with pytest.raises(SourceError, match="there is no") as raised:
        parse(str(tmp_path / "x.onnx"))
    assert raised.value.hint == "did you mean y.onnx?"
    assert near_names("x", []) == "check the spelling"


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (0.9998, 0.99999, ("0.9998", "0.99999")),
        (11.99996, 12.0, ("11.99996", "12")),
        (38.5123, 12.0, ("38.51", "12")),
        (12.0, 12.0, ("12", "12")),
        (0.1 + 0.2, 0.3, ("0.30000000000000004", "0.3")),
    ],
)
def test_a_value_and_its_limit_differ_as_written(value, limit, shown):
    assert apart(value, limit) == shown


def test_shares_beside_their_limit():
    assert (percent(0.90001, 0.9), percent(0.9, 0.90001)) == ("90.001 %", "90 %")
    gate = agreement("a", Share(value=0.99985, rows=20000, what="rows"), 0.9999)
    assert "99.985 %" in gate.message or "99.98 %" in gate.message
    assert "at least 99.99 % wanted" in gate.message


def test_a_gate_says_the_limit_that_failed():
    parity = Parity(samples=4, max_abs=0.1, relative_error=0.01, cosine=1.0, snr_db=40.0, explained=0.9998)
    found = gates(Evidence(parity=parity), Tolerance(), Limits(tolerance={"explained": 0.99999}))
    (gate,) = (g for g in found if g.name == "slices")
    assert gate.verdict is Verdict.FAIL
    assert "at least 0.99999 wanted" in gate.message


def test_what_ended_the_process_is_named():
    def leaves() -> None:
        raise Left("os._exit(0)", 0)

    with pytest.raises(FactoryError, match=r"m.py:f called os\._exit\(0\)$"), usercode.guarded("m.py:f"):
        leaves()
    with pytest.raises(FactoryError, match="raised SystemExit: 3"), usercode.guarded("m.py:f"):
        raise SystemExit(3)


def test_an_error_of_one_of_several_is_not_said_of_all():
    job = Job(what="a, b, c", limits=JobLimits(), parts=("a", "b", "c/d"))
    assert job.about(SourceError("c/d is damaged", hint="")).message == "c/d is damaged"
    assert job.about(SourceError("no room", hint="")).message == "a, b, c: no room"
