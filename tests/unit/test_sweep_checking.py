"""A dry run refuses what the sweep would refuse without work, and says how long searches take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.cli.sweep import _planned
from edgekit.errors import BackendError, ConfigError
from edgekit.sweep import cells as grid
from edgekit.sweep import checking, history, journal, plan, run
from edgekit.sweep.journal import CellResult, Failure
from edgekit.sweep.plan import SearchRow
from edgekit.sweep.tasks import Task

HEAD = 'sources = ["m.py:f"]\ntargets = ["ort-int8"]\n[options]\ncalib = "m.py:data"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "m.py").write_text("raise SystemExit('a dry run runs nothing')\n")
    return folder


def dry(project: Path, text: str, *words: str) -> tuple[int, dict[str, object], str]:
    (project / "sweep.toml").write_text(text)
    done = CliRunner().invoke(
        cli, ["sweep", "sweep.toml", "--dry-run", "--json", *words], standalone_mode=False
    )
    code = done.return_value if done.exception is None else getattr(done.exception, "exit_code", 1)
    return int(code or 0), json.loads(done.stdout), done.stderr


def cell(project: Path, text: str = HEAD) -> grid.Cell:
    path = project / "sweep.toml"
    path.write_text(text)
    return grid.cells(plan.read(path))[0]


def test_a_sweep_without_mistakes_is_planned(project):
    code, document, _ = dry(project, HEAD)
    (row,) = document["cells"]
    assert (code, row["to do"], row["error"]) == (0, "build", None)


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ('recipes = ["prone(sparsity=0.2)"]\n' + HEAD, "UnknownNameError", 2),
        ('recipes = ["prune(sparsity=2)"]\n' + HEAD, "ConfigError", 2),
        ('recipes = ["nofile.toml"]\n' + HEAD, "ConfigError", 2),
        (HEAD + 'method = "magic"\n', "UnknownNameError", 2),
        (HEAD + "[options.set]\nnope = 1\n", "UnknownNameError", 2),
        (HEAD.replace("m.py:data", "gone.py:data"), "SourceError", 3),
        (HEAD.replace("m.py:f", "gone.py:f"), "SourceError", 3),
        (HEAD.replace('calib = "m.py:data"', ""), "CalibrationRequiredError", 2),
    ],
)
def test_what_the_sweep_would_refuse_at_once_is_refused(project, text, kind, code):
    ended, document, said = dry(project, text)
    (row,) = document["cells"]
    assert ended == code
    assert row["to do"] == "refused"
    assert row["error"]["type"] == kind
    assert row["error"]["message"] in said


def test_one_that_is_refused_keeps_nobody_from_the_plan(project):
    code, document, _ = dry(project, 'recipes = ["prone()", ""]\n' + HEAD)
    assert code == 2
    assert sorted(row["to do"] for row in document["cells"]) == ["build", "refused"]


@pytest.mark.parametrize(
    "text", ["[limits]\nmemory = '0GB'", "[[variants]]\nname = 'a'\noptions = { memory = '0kB' }"]
)
def test_no_memory_at_all_is_no_limit(project, text):
    with pytest.raises(ConfigError, match="leaves no memory"):
        cell(project, HEAD + text)


def test_a_cell_that_failed_is_not_called_finished(project):
    of = cell(project)
    failed = CellResult.failed(of, of.key, Failure(type="SourceError", message="", hint="", exit_code=3))
    done = run.Plan(cells=(of,), tasks=(), finished={of.name: failed}, seconds={})
    assert _planned(done, of, {})[6] == "failed"
    fine = run.Plan(cells=(of,), tasks=(), finished={of.name: replace(failed, failure=None)}, seconds={})
    assert _planned(fine, of, {})[6] == "finished"


def test_a_clusters_workers_are_its_own(project):
    _, document, _ = dry(project, HEAD, "--engine", "ray")
    assert document["workers"] is None
    assert dry(project, HEAD, "--engine", "ray", "--workers", "3")[1]["workers"] == 3


def test_a_folder_is_named_as_one(project):
    done = CliRunner().invoke(cli, ["sweep", str(project)], standalone_mode=False)
    assert isinstance(done.exception, ConfigError)
    assert done.exception.message == f"{project} cannot be read: it is a folder"


def row(of: grid.Cell, seconds: float, trials: int = 0) -> history.Row:
    return history.Row(
        when=0.0, source=of.source, recipe=of.compression, target=of.target.name, device="", verdict="passed",
        seconds=seconds, memory=1, trials=trials,
    )  # fmt: skip


def test_a_search_takes_as_often_as_it_tries(project):
    of = cell(project)
    searched = replace(of, name="s", search=SearchRow(budget="drop<=1pt", trials=40))
    assert history.Estimate([row(of, 3.0)]).seconds(searched) == 120.0
    rows = [row(of, 3.0), row(searched, 50.0, trials=10)]
    assert history.Estimate(rows).seconds(searched) == 200.0
    assert history.Estimate(rows).seconds(replace(of, recipe="other")) == 3.0
    assert history.Estimate(rows[1:]).seconds(of) is None


def test_the_whole_is_unknown_while_a_search_is(project):
    of = cell(project)
    searched = replace(of, name="s", search=SearchRow(budget="drop<=1pt"))
    tasks = (Task(cell=of), Task(cell=searched))
    left = run.Plan(cells=(of, searched), tasks=tasks, finished={}, seconds={of.name: 3.0, "s": None})
    assert left.total(1) is None
    assert replace(left, seconds={of.name: 3.0, "s": 40.0}).total(1) == 43.0


def sweeping(out: Path, engine: Callable[..., None]) -> run.Sweeping:
    from edgekit.core.progress import Reporter

    return run.Sweeping(
        out=out, folder=out.parent, workers=1, retries=0, progress=Reporter(lambda event: None), engine=engine
    )


def test_an_engine_that_is_not_there_leaves_no_results(project):
    def nowhere(*_: object, **__: object) -> None:
        raise BackendError("there is no cluster", hint="start one")

    out = project / "out"
    with pytest.raises(BackendError):
        run.run([cell(project)], sweeping(out, nowhere))
    assert not (out / "results.json").exists()
    assert not (out / "report.html").exists()


def test_nothing_of_a_time_is_checked_again(project):
    from edgekit.sweep.tasks import Kind

    of = replace(cell(project), source="gone.py:f")
    assert checking.refusals([Task(cell=of, kind=Kind.TIME)], journal.folder(project, of)) == {}
