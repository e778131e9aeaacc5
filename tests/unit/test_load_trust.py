"""Code that a manifest names is executed only where this user built from it. No torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.artifact.manifest import Artifact, Manifest
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.core.progress import Silent
from edgekit.core.store import Store
from edgekit.diff.apply import Rebuild, apply
from edgekit.diff.suggest import Suggestion
from edgekit.errors import UntrustedSourceError
from edgekit.load import parse, trust
from edgekit.pipeline.stages import BuildContext
from edgekit.types import SourceRecord

RECORD = SourceRecord(text="model.py:factory", kind="factory", sha256="a" * 64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a source that leaves a mark when it is executed."""
    (tmp_path / "model.py").write_text("open('executed', 'w')\ndef factory(): ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_source_that_was_built_from_here_is_opened(folder: Path) -> None:
    store = Store(folder / "cache")
    trust.remember(store, parse(RECORD.text), RECORD)
    assert trust.named(RECORD, store, trust=False, owner="x").attribute == "factory"


@pytest.mark.parametrize("change", [{"sha256": "b" * 64}, {"text": "./model.py:factory"}])
def test_another_record_is_not_what_was_built(folder: Path, change: dict[str, str]) -> None:
    store = Store(folder / "cache")
    trust.remember(store, parse(RECORD.text), RECORD)
    other = SourceRecord(**({"text": RECORD.text, "kind": RECORD.kind, "sha256": RECORD.sha256} | change))
    with pytest.raises(UntrustedSourceError):
        trust.named(other, store, trust=False, owner="x")


def test_the_same_text_in_another_folder_is_another_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(folder / "cache")
    trust.remember(store, parse(RECORD.text), RECORD)
    (received := folder / "received").mkdir()
    (received / "model.py").write_text("def factory(): ...\n")
    monkeypatch.chdir(received)
    with pytest.raises(UntrustedSourceError, match=r"received artifact.*model\.py:factory") as caught:
        trust.named(RECORD, store, trust=False, owner="the received artifact")
    assert "--trust" in caught.value.hint
    assert trust.named(RECORD, store, trust=True, owner="x").path == Path("model.py")


def test_what_a_manifest_calls_its_kind_does_not_count(folder: Path) -> None:
    record = SourceRecord(text=RECORD.text, kind="onnx", sha256=RECORD.sha256)
    with pytest.raises(UntrustedSourceError):
        trust.named(record, Store(folder / "cache"), trust=False, owner="x")


def test_sources_that_execute_nothing_need_no_trust(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")
    record = SourceRecord(text="model.onnx", kind="onnx", sha256="")
    assert trust.named(record, Store(folder / "cache"), trust=False, owner="x").kind == "onnx"


def test_building_a_received_artifact_again_executes_nothing_of_it(folder: Path) -> None:
    manifest = Manifest(edgekit="0", status="passed", target=targets.known()["ort-fp32"], source=RECORD)
    artifact = Artifact(directory=folder / "ort-fp32", manifest=manifest)
    context = BuildContext(store=Store(folder / "cache"), options=Options(), progress=Silent())
    with pytest.raises(UntrustedSourceError):
        apply(artifact, Suggestion(flags=(), why=""), Rebuild(), context)
    assert not (folder / "executed").exists()
