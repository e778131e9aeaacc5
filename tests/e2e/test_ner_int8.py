"""The NER example on a reduced size: it learns, builds, and reports by kind of entity."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from edgekit.quantize.calibrate.codes import CODES

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ner_int8"
MODULES = ("wnut", "model", "data", "ner_int8")


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.data
def test_reduced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("seqeval")
    monkeypatch.setenv("EDGEKIT_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    wnut, model, _, example = (importlib.import_module(name) for name in MODULES)

    few = {"train": 160, "dev": 32, "test": 48}
    whole = wnut.read
    parts = {name: whole(name) for name in few}
    cut = {
        name: dataclasses.replace(part, ids=part.ids[:n], mask=part.mask[:n], labels=part.labels[:n])
        for (name, n), part in zip(few.items(), parts.values(), strict=True)
    }
    monkeypatch.setattr(wnut, "read", cut.__getitem__)
    monkeypatch.setattr(model, "TRAINING", dataclasses.replace(model.TRAINING, epochs=8.0, rate=5e-4))

    try:
        before = example.tagged(example.in_pytorch())
        assert any(tag != "O" for sentence in before[0] for tag in sentence)
        found = model.tagger()
        result = example.edgekit.build(
            found.module,
            dict(found.example_inputs),
            targets=["ort-int8"],
            calibration=[s for s, _ in example.data.evaluation()],
            evaluation=[s for s, _ in example.data.evaluation()],
            out=tmp_path / "out",
            options=example.edgekit.Options(accept_data=CODES, speed_gate=False),
        )
        (artifact,) = result.raise_for_failures().artifacts
        after = example.tagged(artifact.predict(example.inputs()))
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
    assert "micro avg" in example.report(after)
    row = example.row("ort-int8", before, after)
    assert abs(row["change"]) < 15
    assert float(row["words_changed"].rstrip("%")) < 10
