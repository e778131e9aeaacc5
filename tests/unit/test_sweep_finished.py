"""A finished cell is believed only beside the artifact that it tells of, and its figures are that artifact's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Manifest, Status
from edgekit.core.config import Options
from edgekit.core.targets import find
from edgekit.sweep import journal, run
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult, Failure, Verdict
from edgekit.sweep.plan import BenchRow
from edgekit.sweep.tasks import Kind
from edgekit.types import Gate, Measurement, Parity, SourceRecord
from edgekit.types import Verdict as GateVerdict

TARGET = find("ort-fp32")
PARITY = Parity(
    samples=4, max_abs=0.1, relative_error=0.01, cosine=0.99, snr_db=31.5, metric=0.75, metric_name="accuracy",
    reference_metric=0.8,
)  # fmt: skip
REFUSED = Failure(type="GateFailedError", message="", hint="", exit_code=5)


def cell(**changes: object) -> Cell:
    plain = Cell(
        name="a", source="m.onnx", recipe="", variant="", target=TARGET, device="",
        options=Options(target=("ort-fp32",)),
    )  # fmt: skip
    return replace(plain, **changes)


def built(
    out: Path, of: Cell, verdict: GateVerdict = GateVerdict.PASS, p50: float | None = None
) -> CellResult:
    """An artifact in the cell's folder, and the row that tells of it."""
    gates = (Gate(name="snr", verdict=verdict, limit=20.0, value=31.5),)
    status = manifests.status_of(gates)
    directory = manifests.place(journal.folder(out, of), TARGET.name, status, strict=of.options.strict)
    directory.mkdir(parents=True)
    (directory / "m.onnx").write_bytes(b"weights")
    manifest = Manifest(
        edgekit="0",
        status=status,
        target=TARGET,
        source=SourceRecord(text="m.onnx", kind="onnx", sha256=""),
        files=manifests.file_records(directory, ("m.onnx",)),
        parity=PARITY,
        gates=gates,
    )
    if p50 is not None:
        timed = Measurement(
            device="local", threads=1, samples=(), import_ms=1, load_ms=1, first_ms=1, p50_ms=p50, p90_ms=p50,
            p99_ms=None, mad_ms=0.1,
        )  # fmt: skip
        manifest = replace(manifest, measurements=(timed,))
    manifests.write(manifest, directory)
    row = CellResult.failed(of, of.key, None).with_figures(manifests.read(directory).manifest)
    if verdict is GateVerdict.FAIL:
        row = replace(row, failure=REFUSED)
    row = replace(row, timed=p50 is not None, p50_ms=p50)
    journal.write(out, of, row)
    return row


def edited(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("verdict", [GateVerdict.PASS, GateVerdict.UNPROVEN, GateVerdict.FAIL])
@pytest.mark.parametrize("strict", [False, True])
def test_a_finished_cell_is_believed(tmp_path, verdict, strict):
    of = cell(options=Options(target=("ort-fp32",), strict=strict))
    row = built(tmp_path, of, verdict)
    found = journal.known(tmp_path, of)
    assert found.doubt == ""
    assert found.result is not None
    assert (found.result.verdict, found.result.metric, found.result.size) == (row.verdict, 0.75, 7)
    refused = verdict is GateVerdict.FAIL or (strict and verdict is GateVerdict.UNPROVEN)
    assert found.result.exit_code == (5 if refused else 0)


def _garbage(folder: Path) -> None:
    (folder / "ort-fp32" / "m.onnx").write_bytes(b"garbage")


def _no_file(folder: Path) -> None:
    (folder / "ort-fp32" / "m.onnx").unlink()


def _no_manifest(folder: Path) -> None:
    (folder / "ort-fp32" / "manifest.json").unlink()


def _manifest_of_garbage(folder: Path) -> None:
    (folder / "ort-fp32" / "manifest.json").write_bytes(b"\xff{")


def _manifests_status(folder: Path) -> None:
    edited(folder / "ort-fp32" / "manifest.json", lambda d: d.update(status="failed"))


def _manifests_metric(folder: Path) -> None:
    edited(folder / "ort-fp32" / "manifest.json", lambda d: d["parity"].update(metric=0.99))  # type: ignore[attr-defined]


def _manifests_gate(folder: Path) -> None:
    edited(folder / "ort-fp32" / "manifest.json", lambda d: d["gates"][0].update(limit=1.0))  # type: ignore[index]


def _results_metric(folder: Path) -> None:
    edited(folder / "result.json", lambda d: d.update(metric=0.99))


def _results_verdict(folder: Path) -> None:
    edited(folder / "result.json", lambda d: d.update(verdict="unproven"))


def _result_of_another_form(folder: Path) -> None:
    edited(folder / "result.json", lambda d: d.update(seconds="many"))


def _result_of_depth(folder: Path) -> None:
    (folder / "result.json").write_text("[" * 100_000)


def _result_is_a_folder(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "result.json").mkdir()


TAMPERED = [
    _garbage,
    _no_file,
    _no_manifest,
    _manifest_of_garbage,
    _manifests_status,
    _manifests_metric,
    _manifests_gate,
    _results_metric,
    _results_verdict,
    _result_of_another_form,
    _result_of_depth,
    _result_is_a_folder,
]


@pytest.mark.parametrize("change", TAMPERED)
def test_what_was_changed_is_built_again_and_said(tmp_path, monkeypatch, change):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    of = cell()
    built(tmp_path, of)
    change(journal.folder(tmp_path, of))
    left = run.plan([of], tmp_path)
    assert ([t.kind for t in left.tasks], left.finished) == ([Kind.BUILD], {})
    (note,) = left.notes
    assert note.startswith("a: ")
    assert note.endswith("it is built again")


@pytest.mark.parametrize(
    "forged",
    [
        {"digest": "", "verdict": Verdict.PASSED},
        {"digest": "", "verdict": Verdict.ERROR},
        {"verdict": Verdict.ERROR, "failure": REFUSED},
        {"verdict": Verdict.FAILED, "failure": REFUSED},
        {"digest": "0" * 64},
    ],
)
def test_a_row_that_contradicts_itself_or_its_artifact_is_not_believed(tmp_path, forged):
    """Sealed again by whoever forged it."""
    of = cell()
    journal.write(tmp_path, of, replace(built(tmp_path, of), **forged))
    found = journal.known(tmp_path, of)
    assert found.result is None
    assert found.doubt


def test_figures_and_reasons_are_the_artifacts_own(tmp_path):
    of = cell()
    row = built(tmp_path, of)
    forged = replace(
        row, metric=0.99, size=1, snr_db=99.0, p50_ms=0.001, cell="../..", source="other", failure=REFUSED
    )
    journal.write(tmp_path, of, forged)
    assert journal.finished(tmp_path, of) == row


def test_a_refused_artifact_stays_refused(tmp_path):
    of = cell()
    row = built(tmp_path, of, GateVerdict.FAIL)
    journal.write(tmp_path, of, replace(row, failure=None))
    found = journal.finished(tmp_path, of)
    assert found is not None
    assert found.exit_code == 5


def test_a_time_that_is_not_the_artifacts_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    of = cell(bench=BenchRow())
    row = built(tmp_path, of, p50=2.0)
    assert journal.finished(tmp_path, of) == row
    journal.write(tmp_path, of, replace(row, p50_ms=0.5))
    left = run.plan([of], tmp_path)
    assert [t.kind for t in left.tasks] == [Kind.TIME]
    assert left.notes[0].endswith("it is timed again")
    assert left.finished["a"].p50_ms is None


def test_a_time_that_could_not_be_taken_is_not_tried_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    of = cell(bench=BenchRow())
    busy = Failure(type="DeviceBusyError", message="", hint="", exit_code=7)
    journal.write(tmp_path, of, replace(built(tmp_path, of), timed=True, failure=busy))
    left = run.plan([of], tmp_path)
    assert (left.tasks, left.notes) == ((), ())
    assert left.finished["a"].failure == busy


def test_another_builds_status_is_its_folders(tmp_path):
    names = {
        (status, strict): manifests.place(Path("out"), "t", status, strict=strict).name
        for status in Status
        for strict in (False, True)
    }
    refused = {key for key, name in names.items() if name == "t.failed"}
    assert refused == {(Status.FAILED, False), (Status.FAILED, True), (Status.UNPROVEN, True)}


def test_what_is_left_of_an_artifact_makes_room_for_the_next(tmp_path):
    of = cell()
    built(tmp_path, of)
    folder = journal.folder(tmp_path, of)
    (folder / "ort-fp32.failed").mkdir()
    (folder / "ort-fp32" / "manifest.json").unlink()
    journal.forget(tmp_path, of)
    assert list(folder.iterdir()) == []


def test_an_artifact_and_what_no_result_tells_of_are_left_as_they_are(tmp_path):
    of = cell()
    built(tmp_path, of)
    folder = journal.folder(tmp_path, of)
    journal.forget(tmp_path, of)
    assert [p.name for p in folder.iterdir()] == ["ort-fp32"]
    (folder / "ort-fp32" / "manifest.json").unlink()
    journal.forget(tmp_path, of)
    assert [p.name for p in (folder / "ort-fp32").iterdir()] == ["m.onnx"]
