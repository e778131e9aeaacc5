"""Commands that read artifacts which are damaged: what was not looked at is not passed over."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.errors import SourceError

KEPT = Path(__file__).parents[1] / "golden" / "manifest"


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


def test_a_baseline_that_cannot_be_read_does_not_switch_the_comparison_off(tmp_path: Path) -> None:
    old = folder(tmp_path / "old", "{")
    new = folder(tmp_path / "new", (KEPT / "manifest.json").read_text())
    result = CliRunner().invoke(cli, ["compare", str(old), str(new), "--fail-on-regression", "5%"])
    assert result.exit_code == 3
    swapped = CliRunner().invoke(cli, ["compare", str(new), str(old)])
    assert swapped.exit_code == 3
    same = CliRunner().invoke(cli, ["compare", str(new), str(new), "--fail-on-regression", "5%"])
    assert same.exit_code == 0, same.output


def test_an_artifact_whose_files_have_changed_is_not_packed(tmp_path: Path) -> None:
    text = (KEPT / "manifest.json").read_text()
    artifact = folder(tmp_path / "artifact", text)
    (artifact / json.loads(text)["files"][0]["name"]).write_bytes(b"cut short")
    result = CliRunner().invoke(cli, ["pack", str(artifact)])
    assert isinstance(result.exception, SourceError)
    assert not list(tmp_path.glob("*.ekz"))
