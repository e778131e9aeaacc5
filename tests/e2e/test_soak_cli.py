"""``edgekit bench --soak`` with a real runtime, whole and with a leak put around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.artifact import history
from edgekit.cli import cli
from edgekit.core.plugins import runner

LEAK = """

_load, _kept = load, []


def load(path, options):
    session = _load(path, options)
    invoke = session.invoke

    def leaking():
        _kept.append(b"x" * 20_000)
        invoke()

    session.invoke = leaking
    return session
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    import torch

    import edgekit as api

    torch.manual_seed(1)
    out = tmp_path_factory.mktemp("soak")
    rows = [np.random.default_rng(k).normal(size=(1, 6)).astype(np.float32) for k in range(40)]
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    options = api.Options(out=out, speed_gate=False)
    api.build(module, targets="ort-fp32", evaluation=rows, options=options).raise_for_failures()
    return out / "ort-fp32"


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_HISTORY", str(tmp_path / "history.db"))


def soak(artifact: Path, *more: str):
    return CliRunner().invoke(
        cli, ["bench", str(artifact), "--soak", "2s", "--reloads", "12", "--json", *more]
    )


def test_a_runtime_that_keeps_a_buffer_a_call_is_exit_5(artifact, tmp_path, monkeypatch):
    leaking = tmp_path / "runner.py"
    leaking.write_text(runner("onnxruntime").read_text() + LEAK)
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: leaking)
    result = soak(artifact)
    assert result.exit_code == 5, result.output
    (entry,) = json.loads(result.stdout)["measurements"]
    verdicts = {g["name"]: g for g in entry["soak"]["gates"]}
    assert verdicts["memory-slope"]["verdict"] == "fail"
    assert verdicts["memory-slope"]["value"] == pytest.approx(20_000, rel=0.3)
    assert "memory-slope" in result.stderr
    (row,) = history.runs(history.Query(kind="soak"))
    assert row.status == "failed"


def test_a_runtime_that_keeps_nothing_is_exit_0(artifact):
    result = soak(artifact)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)["measurements"]
    found = entry["soak"]
    verdicts = {g["name"]: g["verdict"] for g in found["gates"]}
    assert verdicts["memory-slope"] == verdicts["reload-slope"] == "pass"
    assert verdicts["latency-drift"] in ("pass", "unproven")
    assert verdicts["clock"] in ("shown", "not-run")
    assert set(found["missing"]) == ({"clock"} if verdicts["clock"] == "not-run" else set())
    assert found["calls"] == sum(w["calls"] for w in found["windows"])
    assert len(found["reloads"]) == 12


def test_the_figures_are_kept_and_stay(artifact):
    from edgekit.report import write

    assert soak(artifact).exit_code == 0
    manifest = json.loads((artifact / "manifest.json").read_text())
    (measured,) = manifest["measurements"]
    assert measured["facts"]["soak"]["gates"][0]["name"] == "memory-slope"
    assert "one process of a long run" in measured["reasons"][0]
    (row,) = history.runs(history.Query(kind="soak"))
    assert (row.status, row.device) == ("passed", "local")
    assert history.latest() == ()  # no measurement of a board's
    quick = ["bench", str(artifact), "--processes", "2", "--seconds", "0.01"]
    assert CliRunner().invoke(cli, quick).exit_code == 0
    (measured,) = json.loads((artifact / "manifest.json").read_text())["measurements"]
    assert measured["validity"] in ("VALID", "NOISY", "INVALID")
    assert measured["facts"]["soak"]["calls"] > 0
    page = artifact.parent / "report.html"
    write([artifact], page)
    text = page.read_text()
    assert "A long run: " in text
    assert "memory-slope" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--soak", "1x"], "no quantity"),
        (["--soak", "0.5s"], "shows nothing"),
        (["--soak", "400d"], "more than is meant"),
        (["--soak", "10s", "--vs", "other"], "no meaning with --soak"),
        (["--soak", "10s", "--binary", "x"], "no meaning with --soak"),
    ],
)
def test_what_cannot_be_meant_is_exit_2(artifact, more, said):
    result = CliRunner().invoke(cli, ["bench", str(artifact), *more])
    assert said in f"{result.output} {result.exception}"
    assert getattr(result.exception, "exit_code", result.exit_code) == 2


def test_a_folder_that_cannot_be_written_is_told_before(artifact, monkeypatch):
    from edgekit.artifact import manifest
    from edgekit.artifact.soak import soak as run
    from edgekit.errors import UsageError

    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="cannot be written"):
        run(manifest.read(artifact))
