"""The public names: exact, light, and of a type that a type checker knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact.manifest import FileRecord, Manifest
from edgekit.artifact.summary import table
from edgekit.errors import GateFailedError
from edgekit.types import Precision, SourceRecord, Target

USES = Path(__file__).with_name("api_names.py")


def test_every_name_is_there_and_no_other_is_listed():
    assert sorted(edgekit.__all__) == list(edgekit.__all__) == dir(edgekit)
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = edgekit.nothing_of_the_kind


def test_import_is_light():
    heavy = ("torch", "onnx", "numpy", "onnxruntime", "msgspec", "click")
    code = f"import edgekit, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_the_file_below_uses_every_public_name():
    text = USES.read_text(encoding="utf-8")
    for name in edgekit.__all__:
        assert f"edgekit.{name}" in text, name


@pytest.mark.slow
def test_every_public_name_has_a_type():
    """mypy --strict (see pyproject.toml) on a file that says what each name is: one that were Any would not be."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(USES)],
        capture_output=True,
        text=True,
        check=False,
        cwd=USES.parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr


def artifact(name, folder):
    target = Target(name=name, backend="b", precision=Precision.FP32, runs_on="cpu", file="model")
    manifest = Manifest(
        edgekit="1",
        status="passed",
        target=target,
        source=SourceRecord(text="s", kind="k", sha256=""),
        files=(FileRecord(name="model", size=1234, sha256=""),),
    )
    return edgekit.Artifact(directory=Path(folder), manifest=manifest)


def test_names_from_a_stranger_are_escaped():
    hostile = artifact("<script>alert(1)</script>", "a\x1b[2J<b>")
    html = hostile._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html + table([hostile]).text() + repr(hostile)
    error = GateFailedError("<i>no</i>", hint="", gates=[])
    failed = edgekit.BuildResult(
        artifacts=(), failures=(edgekit.Failure(target="<u>", error=error, artifact=hostile),)
    )
    assert "<i>" not in failed._repr_html_()
    assert "<u>" not in failed._repr_html_()


def test_a_long_result_fits_a_screen():
    result = edgekit.BuildResult(
        artifacts=tuple(artifact(f"target-{i}", "x" * 500) for i in range(100)),
        failures=tuple(
            edgekit.Failure(target=f"t{i}", error=GateFailedError("no\n" * 50, hint="", gates=[]))
            for i in range(100)
        ),
    )
    lines = repr(result).splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) < 200
