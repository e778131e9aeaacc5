"""``edgekit init``: a file in which each line, in force or not, is one that edgekit reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.core.config import FILE, Options
from edgekit.core.declared import declared_options
from edgekit.core.starter import starter
from edgekit.errors import SourceError, UnknownNameError, UsageError


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    for field in declared_options(Options).values():
        monkeypatch.delenv(field.variable, raising=False)
    (tmp_path / "model.py").write_text("def net(): ...\n")
    return tmp_path


def _run(*words: str) -> str:
    result = CliRunner().invoke(cli, ["init", *words], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_every_line_is_one_that_is_read(here):
    text = starter("model.py:net", {})
    Path(FILE).write_text(text)
    assert Options.load() == Options()
    shown = [
        line[2:]
        for line in text.splitlines()
        if line.startswith("# ") and " = " in line and line[2].islower()
    ]
    names = [
        line.partition(" = ")[0] for line in shown if line.partition(" = ")[0] in declared_options(Options)
    ]
    for line in shown:
        if line.partition(" = ")[0] in names:
            Path(FILE).write_text(line)
            Options.load()
    wanted = {n for n, f in declared_options(Options).items() if "build" in f.declared.commands}
    assert set(names) >= wanted - {"trust"}
    assert "trust" not in names


def test_what_is_given_is_in_force(here):
    said = _run(
        "model.py:net", "--target", "tflite-int8,ort-fp32", "--calib", 'a "b".py:c', "--eval", "e.py:f"
    )
    assert "edgekit build model.py:net reads it" in said
    loaded = Options.load()
    assert loaded == Options(target=("tflite-int8", "ort-fp32"), calib='a "b".py:c', eval="e.py:f")


def test_what_is_there_is_left_alone(here):
    Path(FILE).write_text("samples = 3\n")
    with pytest.raises(UsageError, match="already"):
        _run("model.py:net")
    assert Path(FILE).read_text() == "samples = 3\n"


def test_what_cannot_be_is_refused_first(here):
    for words, error in (
        (["nothing.py:net"], SourceError),
        (["model.py:net", "-t", "tflite-in8"], UnknownNameError),
    ):
        with pytest.raises(error):
            _run(*words)
    assert not Path(FILE).exists()


def test_a_name_is_no_line_of_its_own():
    assert starter("a\nsamples = 3\n", {}).splitlines()[0] == "# edgekit build a?samples = 3?"
