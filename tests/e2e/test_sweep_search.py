"""A sweep whose cells search for their recipe: as ``edgekit compress --budget``, and a build of what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import edgekit
from test_search_workers_cli import MODEL

pytest.importorskip("optuna", reason="the extra compress is not installed")
pytestmark = [pytest.mark.e2e]

SWEEP = """
sources = ["model.py:net"]
targets = ["ort-int8-weights"]

[options]
eval = "model.py:data"
task = "classification"

[[recipes]]
[[recipes]]
name = "found"
search = { budget = "drop<=5pt", trials = %d, steps = ["prune", "cluster"], workers = %d }
[[recipes]]
name = "never"
search = { budget = "ekz<=1B", trials = 2, steps = ["prune"] }
"""


def swept(folder: Path, trials: int, workers: int = 1) -> dict[str, dict]:
    (folder / "model.py").write_text(MODEL)
    (folder / "sweep.toml").write_text(SWEEP % (trials, workers))
    result = edgekit(
        *("sweep", "sweep.toml", "--out", "out", "--workers", 2, "--json"),
        cwd=folder,
        env={"EDGEKIT_CACHE": str(folder / "cache")},
    )
    assert result.code == 5, result.err
    rows = {}
    for row in result.json["results"]:
        rows[row["cell"].rpartition("-")[0].replace("net-", "").replace("-ort-int8-weights", "")] = row
    return rows


def test_what_a_cell_finds_is_built_and_told(tmp_path: Path) -> None:
    rows = swept(tmp_path, 6)
    found, never = rows["found"], rows["never"]
    (plain,) = (row for name, row in rows.items() if name not in ("found", "never"))
    assert (plain["failure"], plain["found"], plain["recipe"]) == (None, "", "")
    assert found["failure"] is None
    assert found["recipe"] == "search: drop<=5pt"
    assert found["found"].startswith(("prune(", "cluster("))
    assert found["metric"] >= found["reference_metric"] - 0.05
    assert never["failure"]["type"] == "GateFailedError"
    assert never["failure"]["exit_code"] == 5

    searched = edgekit(
        *("compress", "model.py:net", "--budget", "drop<=5pt", "--trials", "6", "--steps", "prune,cluster"),
        *("--task", "classification", "--eval", "model.py:data", "--target", "ort-int8-weights"),
        *("-o", "alone", "--json"),
        cwd=tmp_path,
        env={"EDGEKIT_CACHE": str(tmp_path / "another cache"), "OMP_NUM_THREADS": "1"},
    )
    assert searched.code == 0, searched.err
    assert searched.json["winner"]["line"] == found["found"]
    folder = tmp_path / "out" / "cells" / found["cell"]
    assert (folder / "search" / "weights.safetensors").read_bytes() == (
        tmp_path / "alone" / "weights.safetensors"
    ).read_bytes()
    manifest = json.loads((folder / "ort-int8-weights" / "manifest.json").read_text())
    assert manifest["status"] in ("passed", "unproven")

    # Nothing again; with more workers nothing either; with more candidates only that one.
    again = swept(tmp_path, 6, workers=2)
    assert {n: r["digest"] for n, r in again.items()} == {n: r["digest"] for n, r in rows.items()}
    assert [r["seconds"] for r in again.values()] == [r["seconds"] for r in rows.values()]
    more = swept(tmp_path, 8, workers=2)
    assert more["found"]["seconds"] != rows["found"]["seconds"]
    assert more["never"]["seconds"] == rows["never"]["seconds"]
    lines = (folder / "search" / "search.jsonl").read_text().splitlines()
    assert len(lines) >= 9


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ('{ budget = "drop<=1pt", workers = 0 }', "workers is 0"),
        ('{ budget = "drop<=1pt", trials = 0 }', "trials is 0"),
        ('{ budget = "drop<=1pt", seed = -1 }', "seed is -1"),
        ('{ budget = "drop<=1pt", epochs = nan }', "epochs is nan"),
        ('{ budget = "drop<=1pt", steps = ["prun"] }', "prun"),
        ('{ budget = "" }', "budget"),
        ('{ budget = "fast" }', "is no limit"),
        ('{ budget = "latency<=5ms" }', "latency"),
        ("{ trials = 4 }", "budget"),
        ('{ budget = "drop<=1pt", time = "5m" }', "time"),
        ("3", "search"),
    ],
)
def test_searches_that_cannot_be_meant(search: str, said: str, tmp_path: Path) -> None:
    from edgekit.errors import EdgekitError
    from edgekit.sweep import plan

    path = tmp_path / "sweep.toml"
    path.write_text(f'sources = ["m.py:f"]\ntargets = ["ort-fp32"]\n[[recipes]]\nsearch = {search}\n')
    with pytest.raises(EdgekitError, match=said) as caught:
        plan.read(path)
    assert caught.value.exit_code == 2


def test_a_recipe_and_a_search_for_one(tmp_path: Path) -> None:
    from edgekit.errors import ConfigError
    from edgekit.sweep import plan

    path = tmp_path / "sweep.toml"
    path.write_text(
        'sources = ["m.py:f"]\ntargets = ["ort-fp32"]\n'
        '[[recipes]]\nrecipe = "prune(sparsity=0.5)"\nsearch = { budget = "drop<=1pt" }\n'
    )
    with pytest.raises(ConfigError, match="a search for one"):
        plan.read(path)
