"""Two builds held against each other: what is worse, what only looks so, and what other programs read of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgekit.artifact.manifest import Artifact, FileRecord, Manifest, Status
from edgekit.report.collect import Entry
from edgekit.report.comparison import Change, compare
from edgekit.report.written import junit, markdown
from edgekit.types import Measurement, Parity, Precision, SourceRecord, Target

ROW = Target(name="t", backend="onnxruntime", precision=Precision.FP32, runs_on="cpu", file="m.onnx")
PARITY = Parity(
    samples=400, max_abs=0.1, relative_error=0.1, snr_db=30.0, cosine=1.0, top1_agreement=0.99, agreement_rows=400,
    metric=0.9, reference_metric=0.92, metric_name="accuracy", row_loss=1 / 400, data="evaluation",
)  # fmt: skip


def _times(median: float, spread: float = 0.002, processes: int = 6, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = median * (1 + spread * rng.standard_normal(processes))
    return tuple(tuple(c * (1 + 0.01 * rng.standard_normal(80))) for c in centres)


def _entry(size: int = 1000, times: Any = None, status: Status = Status.PASSED, **changes: Any) -> Entry:
    measured = ()
    rows = {"local": times} if times is not None else {}
    if times is not None:
        figure = Measurement(
            device="local", threads=changes.pop("threads", 2), samples=(), import_ms=1, load_ms=1, first_ms=1,
            p50_ms=float(np.median([np.median(t) for t in times])), p90_ms=1, p99_ms=None, mad_ms=0.1,
            peak_memory=changes.pop("memory", 10_000_000), validity=changes.pop("validity", "VALID"),
            facts={"device": {"processor": changes.pop("processor", "one")}},
        )  # fmt: skip
        measured = (figure,)
    manifest = Manifest(
        edgekit="0",
        status=status,
        target=replace(ROW, name=changes.pop("name", "t")),
        source=SourceRecord(text="m", kind="factory", sha256=""),
        files=(FileRecord(name="m.onnx", size=size, sha256=""),),
        measurements=measured,
        details={"evaluation": {"fingerprint": changes.pop("data", "a")}},
        parity=replace(PARITY, **changes),
    )
    return Entry(artifact=Artifact(directory=Path(manifest.target.name), manifest=manifest), times=rows)


def _found(old: Entry, new: Entry) -> dict[str, Any]:
    return {f.name: f for f in compare([old], [new])}


def test_the_same_build_is_the_same():
    figures = _found(_entry(times=_times(1.0)), _entry(times=_times(1.0, seed=1)))
    assert {f.change for f in figures.values()} == {Change.SAME}
    assert not any(f.regressed(0.0) for f in figures.values())


@pytest.mark.parametrize(
    ("change", "name", "worse"),
    [
        ({"size": 1100}, "size", {0.05: True, 0.2: False}),
        ({"metric": 0.8}, "accuracy", {0.05: True, 0.2: False}),
        ({"top1_agreement": 0.9}, "agreement", {0.05: True, 0.2: False}),
        ({"times": _times(1.3)}, "latency on local", {0.05: True, 0.5: False}),
        ({"times": _times(1.0), "memory": 12_000_000}, "memory on local", {0.05: True, 0.5: False}),
        ({"status": Status.FAILED}, "verdict", {0.05: True, 0.99: True}),
    ],
)
def test_what_is_worse(change, name, worse):
    figure = _found(_entry(times=_times(1.0)), _entry(**{"times": _times(1.0), **change}))[name]
    assert figure.change is Change.WORSE
    for limit, regressed in worse.items():
        assert figure.regressed(limit) is regressed
    back = _found(_entry(**{"times": _times(1.0), **change}), _entry(times=_times(1.0)))[name]
    assert back.change is Change.BETTER
    assert not back.regressed(0.0)


@pytest.mark.parametrize(
    ("change", "name", "found"),
    [
        ({"metric": 0.8975 + 0.0005}, "accuracy", Change.UNSURE),  # less than two of 400 rows
        ({"metric": 0.5, "data": "b"}, "accuracy", Change.MISSING),
        ({"times": _times(1.05, spread=0.08)}, "latency on local", Change.UNSURE),
        ({"times": _times(1.5), "validity": "NOISY"}, "latency on local", Change.UNSURE),
        ({"times": _times(1.5, processes=2)}, "latency on local", Change.UNSURE),
        ({"times": _times(1.5), "processor": "two"}, "latency on local", Change.MISSING),
        ({"times": _times(1.5), "threads": 4}, "latency on local", Change.MISSING),
        ({"times": None}, "latency on local", Change.MISSING),
        ({"times": _times(1.0), "memory": 10_300_000}, "memory on local", Change.SAME),
    ],
)
def test_what_nobody_can_tell_is_no_regression(change, name, found):
    figure = _found(_entry(times=_times(1.0)), _entry(**{"times": _times(1.0), **change}))[name]
    assert figure.change is found
    assert figure.why or found is Change.SAME
    assert not figure.regressed(0.0)


def test_two_runs_of_one_artifact_are_hardly_ever_told_apart():
    """Runs of one machine drift by some per cent: none of fifty is called worse."""
    rng = np.random.default_rng(7)
    for number in range(50):
        drift = 1 + 0.02 * rng.standard_normal()
        old, new = (
            _entry(times=_times(1.0, 0.02, seed=number)),
            _entry(times=_times(drift, 0.02, seed=number + 99)),
        )
        assert _found(old, new)["latency on local"].change is not Change.WORSE


def test_a_target_that_is_gone_is_worse_and_a_new_one_is_not():
    figures = compare([_entry(name="a"), _entry(name="b")], [_entry(name="b"), _entry(name="c")])
    verdicts = {f.target: f for f in figures if f.name == "verdict"}
    assert verdicts["a"].regressed(0.9)
    assert verdicts["c"].change is Change.MISSING
    assert not verdicts["c"].regressed(0.0)


def test_what_is_written_for_others():
    evil = 'x|y](http://evil) `<b>&"\x1b[2J @all'
    figures = compare(
        [_entry(name=evil, size=1000), _entry(name="b")], [_entry(name=evil, size=2000), _entry(name="b")]
    )
    text = markdown(figures, 0.05)
    first, *rows = text.splitlines()[2:]
    assert "❌" in first
    assert first.replace("\\|", "").count("|") == 7
    assert "<b>" not in text
    assert "\x1b" not in text
    assert all(row.count("|") >= 7 for row in rows)
    suite = ElementTree.fromstring(junit(figures, 0.05))
    assert suite.attrib["failures"] == "1"
    assert len(suite.findall("testcase")) == len(figures) == int(suite.attrib["tests"])
    assert "1 kB → 2 kB" in suite.find("testcase/failure").attrib["message"]  # type: ignore[union-attr]
