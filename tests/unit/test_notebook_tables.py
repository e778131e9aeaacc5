"""What a notebook shows of artifacts, measurements, checks and reports; names of a stranger's are text in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import tables
from edgekit.artifact.golden import Replay
from edgekit.artifact.inspect.inspection import Inspection, StoredWeight
from edgekit.artifact.manifest import Artifact, FileRecord, Manifest
from edgekit.artifact.measure import Measured
from edgekit.artifact.profile import OperatorTime, Profile
from edgekit.artifact.summary import Table
from edgekit.devices.measurement import Comparison
from edgekit.devices.statistics import Difference, Interval
from edgekit.diff import Walk
from edgekit.diff.compare import Diff
from edgekit.diff.report import LayerDiff, StageDiff
from edgekit.diff.resolve import Chain
from edgekit.diff.suggest import Suggestion
from edgekit.errors import DeviceError
from edgekit.report import Written
from edgekit.types import Gate, Measurement, Precision, SourceRecord, Target, TensorSpec, Verdict

EVIL = "<script>alert(1)</script>\x1b[2J\"onload='x'"


class Elements(HTMLParser):
    """The names of all elements and attributes of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= dict(attrs)


def measurement(**changes):
    fields = {
        "device": EVIL,
        "threads": 2,
        "samples": ((1.0, 1.25),),
        "import_ms": 5.0,
        "load_ms": 7.5,
        "first_ms": 3.0,
        "p50_ms": 1.125,
        "p90_ms": 1.25,
        "p99_ms": None,
        "mad_ms": 0.1,
    }
    return Measurement(**fields | changes)


def measured(comparison=None, **changes):
    target = Target(name=EVIL, backend="b", precision=Precision.FP32, runs_on="cpu", file="model")
    manifest = Manifest(
        edgekit="1",
        status="passed",
        target=target,
        source=SourceRecord(text="s", kind="k", sha256=""),
        files=(FileRecord(name="model", size=1, sha256=""),),
    )
    artifact = Artifact(directory=Path("a"), manifest=manifest)
    return Measured(artifact=artifact, measurement=measurement(**changes), comparison=comparison)


def layer(order, **changes):
    fields = {"module": EVIL, "node": EVIL, "op": EVIL, "tensor": EVIL}
    figures = {"local_db": 30.0, "accumulated_db": 25.0, "excess_db": 12.5}
    return LayerDiff(order=order, **fields, **figures, **changes)


def diff():
    stage = StageDiff(
        before=EVIL,
        after=EVIL,
        output_db=22.5,
        source_db=22.5,
        layers=tuple(layer(i, wrong=i == 0) for i in range(20)),
    )
    return Diff(
        walk=Walk(stages=(stage,), samples=3, notes=(EVIL,)),
        suggestions=(Suggestion(flags=(EVIL,), why=EVIL),),
        chain=Chain(forms=(), samples=(), notes=(), artifact=None, source=None),
    )


def inspected():
    return Inspection(
        path=Path(EVIL.replace("/", "")),
        format="ONNX",
        size=2_000,
        inputs=(TensorSpec(name=EVIL, dtype="float32", shape=(1, EVIL)),),
        outputs=(),
        operators={EVIL: 1_234},
        weights={"int8": 10},
        parameters=5_000,
        layers=(StoredWeight(name=EVIL, layer=EVIL, op=EVIL, dtype="int8", shape=(2, 5), count=10, size=10),),
        notes=(EVIL,),
    )


def profiled():
    operator = OperatorTime(
        name=EVIL, op=EVIL, module=EVIL, us=12.34, share=0.5, placed=EVIL, precision="int8"
    )
    return Profile(
        device=EVIL, backend="b", runs=8, threads=1, operators=(operator,), whole_us=25.0, notes=(EVIL,)
    )


def replayed():
    gates = (Gate(name=EVIL, verdict=Verdict.FAIL, limit=20.0, value=12.5, message=EVIL),)
    return Replay(parity=None, gates=gates, runtime_versions={}, device=EVIL, recorded=None)


def benched():
    failure = DeviceError(EVIL, hint="")
    return edgekit.BenchResult(measured=(measured(),), failures=(failure,))


@pytest.mark.parametrize("make", [measured, benched, replayed, profiled, inspected, diff])
def test_what_a_stranger_named_is_text(make):
    html = make()._repr_html_()
    found = Elements(html)
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "b", "ul", "li"}
    assert found.attributes == {}
    assert "\x1b" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_measurement_shows_its_figures_and_only_what_is_known():
    html = measured(peak_memory=3_400_000, validity="NOISY", reasons=("others ran",))._repr_html_()
    for cell in ("<td>1.12</td>", "<td>1.25</td>", "<td>3.4 MB</td>", "<td>NOISY: others ran</td>"):
        assert cell in html
    assert "p99" not in html
    assert "baseline" not in html
    assert "<td>2.5</td>" in measured(p99_ms=2.5)._repr_html_()


def test_a_comparison_shows_the_ratio_and_the_verdict():
    one = measurement()
    difference = Difference(
        verdict="faster",
        ratio=0.5,
        interval=Interval(low=0.4, high=0.6, confidence=0.9, method="m"),
        p_value=0.01,
        detectable=0.1,
    )
    html = measured(Comparison(first=one, second=one, difference=difference))._repr_html_()
    assert "<th>of baseline</th>" in html
    assert "<td>0.5×</td><td>faster</td>" in html


def test_gates_show_value_limit_and_verdict():
    html = replayed()._repr_html_()
    assert "<td>12.5</td><td>20</td><td>fail</td>" in html
    assert "failed" in html


def test_a_comparison_by_layers_shows_the_first_ones_and_what_is_off():
    html = diff()._repr_html_()
    assert html.count("<tr>") == 1 + 8
    assert html.count("<td>off</td>") == 1
    assert "22.5 dB" in html


def test_a_table_of_thousands_is_cut_and_says_so():
    long = Table(columns=("a",), rows=tuple((str(i),) for i in range(1_234)))
    html = tables.titled("", {"operators": long})
    assert html.count("<tr>") == 1 + 100
    assert "1,134 more" in html


def test_a_report_is_shown_in_a_frame_without_scripts(tmp_path):
    page = tmp_path / 'a"b.html'
    page.write_text("<h1>A &amp; B</h1><script>alert(1)</script>", encoding="utf-8")
    html = Written(entries=(), skipped=(), html=page)._repr_html_()
    found = Elements(html)
    assert found.tags == {"iframe"}
    assert found.attributes["sandbox"] is None  # empty: no scripts, no forms, no origin
    assert found.attributes["srcdoc"] == page.read_text(encoding="utf-8")
    assert found.attributes["title"] == str(page)


def test_a_report_that_is_gone_or_large_is_a_link(tmp_path):
    page = tmp_path / "a&b.html"
    written = Written(entries=(), skipped=(), html=page)
    gone = written._repr_html_()
    assert Elements(gone).attributes == {"href": str(page)}
    page.write_bytes(b"x" * 3_000_001)
    assert written._repr_html_() == gone
