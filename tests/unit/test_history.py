"""The history: what is kept, what is found again, and what a file of another kind does."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.artifact import history, history_file
from edgekit.artifact.history import Kind, Query
from edgekit.artifact.history_file import place
from edgekit.artifact.manifest import Artifact, FileRecord, Manifest, Status
from edgekit.cli import cli
from edgekit.errors import EdgekitError, SourceError, UnknownNameError, UsageError
from edgekit.report.collect import remembered
from edgekit.types import Gate, Measurement, Precision, SourceRecord, Target, Verdict

GATE = Gate(name="snr", verdict=Verdict.PASS, limit=20.0, value=31.5)


def artifact(size: int = 100, target: str = "ort-fp32", source: str = "m.py:f") -> Artifact:
    row = Target(name=target, backend="onnxruntime", precision=Precision.FP32, runs_on="cpu", file="m.onnx")
    manifest = Manifest(
        edgekit="0",
        status=Status.PASSED,
        target=row,
        source=SourceRecord(text=source, kind="factory", sha256=""),
        files=(FileRecord(name="m.onnx", size=size, sha256=""),),
        gates=(GATE,),
    )
    return Artifact(directory=Path("/tmp") / target, manifest=manifest)


def measurement(p50: float = 1.0, device: str = "local") -> Measurement:
    times = tuple(tuple(p50 + i / 1000 for i in range(5000)) for _ in range(3))
    return Measurement(
        device=device, threads=2, samples=times, import_ms=1, load_ms=2, first_ms=3, p50_ms=p50, p90_ms=p50,
        p99_ms=None, mad_ms=0.1, peak_memory=1000, reasons=("loud",), validity="NOISY",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_HISTORY", str(tmp_path / "of" / "mine.sqlite3"))
    return tmp_path / "of" / "mine.sqlite3"


def test_rows_come_back_with_the_newest_first(file: Path):
    history.remember(Kind.BUILD, artifact())
    history.remember(Kind.BENCH, artifact(), measurement=measurement())
    history.remember(Kind.VERIFY, artifact(), gates=(), status="failed")
    runs = history.runs(Query())
    assert [(r.id, r.kind, r.status, r.p50_ms) for r in runs] == [
        (3, Kind.VERIFY, "failed", None),
        (2, Kind.BENCH, "passed", 1.0),
        (1, Kind.BUILD, "passed", None),
    ]
    with sqlite3.connect(file) as database:  # whoever wants to ask in SQL
        gates = database.execute("SELECT run, name, value FROM gates").fetchall()
        measured = database.execute("SELECT run, validity, reasons FROM measurements").fetchall()
    assert gates == [
        (1, "snr", 31.5),
        (2, "snr", 31.5),
    ]
    assert measured == [(2, "NOISY", '["loud"]')]


def test_a_build_that_changes_nothing_is_no_new_row():
    for size in (100, 100, 101, 100):
        history.remember(Kind.BUILD, artifact(size))
    assert [r.size for r in history.runs(Query())] == [100, 101, 100]


def test_rows_are_chosen():
    history.remember(Kind.BUILD, artifact())
    history.remember(Kind.BENCH, artifact(target="ort-int8"), measurement=measurement(device="pi5"))
    history.remember(Kind.BENCH, artifact(source="x'); DROP TABLE runs; --"), measurement=measurement())

    def ids(**query: object) -> list[int]:
        return [r.id for r in history.runs(Query(**query))]  # type: ignore[arg-type]

    assert ids(targets=("ort-int8", "other")) == [2]
    assert ids(device="pi5") == [2]
    assert ids(kind="build") == [1]
    assert ids(source="x'); DROP TABLE runs; --") == [3]
    assert ids(limit=1) == [3]
    assert ids(since="1d") == [3, 2, 1]
    assert ids(since="2999-01-01") == []
    with pytest.raises(UsageError, match="no date"):
        ids(since="yesterday")


def test_an_artifact_is_as_it_was():
    history.remember(Kind.BENCH, artifact(123), measurement=measurement(2.0))
    entry = remembered(1)
    assert entry.artifact.manifest == artifact(123).manifest
    (processes,) = entry.times.values()
    assert len(processes) == 3
    assert 2000 <= len(processes[0]) <= 2500
    assert processes[0][0] == 2.0
    with pytest.raises(UnknownNameError):
        remembered(2)


def test_before_is_another_artifact_of_the_same_target_and_source():
    first, second = artifact(1), artifact(2)
    history.remember(Kind.BUILD, first)
    history.remember(Kind.BENCH, first, measurement=measurement())
    history.remember(Kind.BUILD, artifact(3, source="other"))
    history.remember(Kind.BUILD, second)
    history.remember(Kind.VERIFY, first, gates=())
    assert history.before(second) == 2
    assert history.before(artifact(9, target="tflite-fp32")) is None


def test_old_rows_go_with_what_belongs_to_them(file: Path):
    history.remember(Kind.BENCH, artifact(), measurement=measurement())
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET at = '2001-01-01T00:00:00Z'")
    history.remember(Kind.BUILD, artifact(2))
    assert history.prune(30) == 1
    with sqlite3.connect(file) as database:
        tables = ("runs", "gates", "measurements")
        counts = [database.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables]
    assert counts == [1, 1, 0]


def _text(file: Path) -> None:
    file.write_text("this is no database")


def _foreign(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")


def _newer(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("make", [_text, _foreign, _newer, Path.mkdir])
def test_a_file_that_is_none_of_it_is_left_alone(
    make: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
):
    file.parent.mkdir()
    make(file)
    before = file.read_bytes() if file.is_file() else b""
    history.remember(Kind.BUILD, artifact())  # the work was done: a warning
    assert "the history was not written" in caplog.text
    with pytest.raises(SourceError):
        history.runs(Query())
    assert (file.read_bytes() if file.is_file() else b"") == before


def test_a_damaged_row_is_named(file: Path):
    history.remember(Kind.BUILD, artifact())
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET manifest = X'00'")
    with pytest.raises(SourceError, match="is damaged"):
        remembered(1)


DAMAGE = [
    "UPDATE runs SET kind = 'other' WHERE id = 2",
    "UPDATE runs SET size = 'many' WHERE id = 2",
    "UPDATE runs SET metric = 'good' WHERE id = 2",
    "UPDATE runs SET snr_db = X'00' WHERE id = 2",
    "UPDATE runs SET source = X'FF' WHERE id = 2",
    "UPDATE measurements SET p50_ms = 'quick' WHERE run = 2",
    "UPDATE measurements SET threads = X'01' WHERE run = 2",
    "UPDATE measurements SET peak_memory = 0.5 WHERE run = 2",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_left_out_and_counted(file: Path, damage: str, caplog: pytest.LogCaptureFixture):
    for size, device in ((1, "here"), (2, "there"), (3, "far")):
        history.remember(Kind.BENCH, artifact(size), measurement=measurement(device=device))
    with sqlite3.connect(file) as database:
        database.execute(damage)
    assert [r.size for r in history.runs(Query(limit=2))] == [3, 1]
    assert "1 rows of the history" in caplog.text
    caplog.clear()
    assert {r.size for r in history.latest()} == {1, 3}
    assert "1 rows of the history" in caplog.text
    assert run("history")


def test_a_text_that_is_no_utf_8_is_shown_as_far_as_it_goes(file: Path):
    history.remember(Kind.BUILD, artifact())
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET source = CAST(X'61FF62' AS TEXT)")
    assert history.runs(Query())[0].source == "a\ufffdb"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE runs SET manifest = 'text'",
        "UPDATE runs SET manifest = 5",
        "UPDATE runs SET times = 'text'",
        "UPDATE runs SET directory = X'2F'",
    ],
)
def test_a_run_that_is_damaged_is_an_error_where_it_is_named(file: Path, damage: str):
    history.remember(Kind.BENCH, artifact(), measurement=measurement())
    with sqlite3.connect(file) as database:
        database.execute(damage)
    with pytest.raises(SourceError, match="is damaged"):
        remembered(1)


@pytest.mark.parametrize(
    "times", ["[1, 2]", "null", "[" * 100_000, '{"local": 3}', '{"local": [["x", null, -1]]}']
)
def test_times_that_are_none_are_no_traceback(file: Path, times: str):
    history.remember(Kind.BENCH, artifact(), measurement=measurement())
    with sqlite3.connect(file) as database:
        database.execute("UPDATE runs SET times = ?", (zlib.compress(times.encode()),))
    if times.startswith("{"):
        assert remembered(1).times == {}
        return
    with pytest.raises(SourceError, match="is damaged"):
        remembered(1)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, '' AS at FROM n"


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE runs", f"CREATE VIEW runs AS {ENDLESS}"],
        ["DROP TABLE measurements", f"CREATE VIEW measurements AS {ENDLESS}"],
        ["DROP TABLE measurements", "CREATE VIRTUAL TABLE measurements USING fts5(x)"],
        ["DROP TABLE gates"],
    ],
)
def test_a_table_that_is_a_query_is_never_run(
    file: Path, statements: list[str], caplog: pytest.LogCaptureFixture
):
    history.remember(Kind.BUILD, artifact())
    with sqlite3.connect(file) as database:
        for statement in statements:
            database.execute(statement)
    with pytest.raises(SourceError, match="has no table"):
        history.runs(Query())
    history.remember(Kind.BUILD, artifact(2))
    assert "has no table" in caplog.text


def test_a_question_without_end_is_ended(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """What is asked in a trigger, say."""
    history.remember(Kind.BUILD, artifact())
    with sqlite3.connect(file) as database:
        database.execute(
            f"CREATE TRIGGER t BEFORE INSERT ON runs BEGIN SELECT count(*) FROM ({ENDLESS}); END"
        )
    monkeypatch.setattr(history_file, "_MOST_S", 0.2)
    history.remember(Kind.BUILD, artifact(2))
    assert "the history was not written: interrupted" in caplog.text
    assert len(history.runs(Query())) == 1


def test_a_pipe_is_no_history(file: Path, caplog: pytest.LogCaptureFixture):
    file.parent.mkdir()
    os.mkfifo(file)
    history.remember(Kind.BUILD, artifact())
    assert "is no file" in caplog.text
    with pytest.raises(SourceError):
        history.runs(Query())


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "99999999999999999999"],
        ["--limit", "0"],
        ["--since", "9999999999999d"],
        ["--since", "9" * 5000 + "d"],
        ["--since", "²d"],
        ["--since", "0001-01-01T00:00+23:00"],
        ["--since", "9999-12-31T23:00-23:00"],
        ["--prune", "1e300"],
        ["--prune", "nan"],
        ["--prune", "inf"],
        ["--prune", "1e7"],
        ["--prune", "-1"],
    ],
)
def test_numbers_and_dates_that_cannot_be_meant_are_usage_errors(words: list[str]):
    history.remember(Kind.BUILD, artifact())
    result = CliRunner().invoke(cli, ["history", *words])
    code = result.exception.exit_code if isinstance(result.exception, EdgekitError) else result.exit_code
    assert code == 2, result.output
    assert len(history.runs(Query())) == 1


@pytest.mark.parametrize("run_", ["@²", "@٣", "@-1", "@" + "9" * 19, "@" + "9" * 5000, "@999999999999999999"])
def test_a_number_that_no_run_has_is_a_usage_error(run_: str):
    history.remember(Kind.BUILD, artifact())
    with pytest.raises(UsageError):
        run("compare", run_, "@1")


def test_a_date_of_any_year_is_as_long_as_rows_have_it():
    history.remember(Kind.BUILD, artifact())
    assert len(history.runs(Query(since="0001-01-01"))) == 1


def test_off_keeps_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EDGEKIT_HISTORY", "off")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    history.remember(Kind.BUILD, artifact())
    assert not (tmp_path / "data").exists()
    with pytest.raises(UsageError, match="off"):
        history.runs(Query())


def test_the_file_lies_where_a_users_data_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("EDGEKIT_HISTORY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert place() == tmp_path / "edgekit" / "history.sqlite3"


def test_many_write_at_once():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: history.remember(Kind.BUILD, artifact(i + 1)), range(40)))
    assert len(history.runs(Query(limit=100))) == 40


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, words)
    if isinstance(result.exception, EdgekitError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_and_compares(tmp_path: Path):
    history.remember(Kind.BUILD, artifact(1000))
    history.remember(Kind.BUILD, artifact(2000))
    assert [r["size"] for r in json.loads(run("history", "--json"))["runs"]] == [2000, 1000]
    assert "ort-fp32" in run("history", "ort-fp32")
    figures = json.loads(run("compare", "@1", "@2", "--json"))["figures"]
    assert [f["change"] for f in figures if f["name"] == "size"] == ["worse"]
    assert "nothing" in run("history", "nothing-of-it")
    with pytest.raises(UsageError, match="no run of the history"):
        run("compare", "@last", "@2")


def test_a_board_shows_the_newest_measurement_of_each_device(tmp_path: Path):
    pytest.importorskip("jinja2")
    with pytest.raises(SourceError):
        run("report", "--board", str(tmp_path / "b"))
    for p50, device in ((3.0, "local"), (2.0, "local"), (9.0, "<script>")):
        history.remember(Kind.BENCH, artifact(), measurement=measurement(p50, device))
    history.remember(Kind.VERIFY, artifact(), gates=())
    run("report", "--board", str(tmp_path / "b"))
    rows = json.loads((tmp_path / "b" / "measurements.json").read_text())["rows"]
    assert [(r["device"], r["p50_ms"]) for r in rows] == [("<script>", 9.0), ("local", 2.0)]
    page = (tmp_path / "b" / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    with pytest.raises(UsageError):
        run("report", "--board", str(tmp_path / "b"), str(tmp_path))


def test_a_build_says_what_was_typed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/edgekit", "build", "my model.py:f"])
    history.remember(Kind.BUILD, replace(artifact()))
    assert history.runs(Query())[0].command == "edgekit build 'my model.py:f'"
