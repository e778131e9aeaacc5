"""Plan folders of others: what they name is not executed, and what they claim ends in a typed error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgekit.compress import plan, recipes
from edgekit.core.store import Store
from edgekit.errors import ConfigError
from edgekit.search.trials import Journal, Setup, Trial

SOURCE = {"text": "model.py:net", "kind": "factory", "path": "../model.py", "attribute": "net"}


def _written(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"version": 1, "seed": 0, "steps": [], "report": {"metric": "", "steps": []}, "source": SOURCE}
    (folder / plan.PLAN).write_text(json.dumps({**document, **changes}))
    return folder


def test_a_plan_is_known_with_the_place_of_its_code(tmp_path):
    """The same bytes beside another model.py name code that nobody has seen."""
    store = Store(tmp_path / "cache")
    own, other = _written(tmp_path / "own" / "plan"), _written(tmp_path / "other" / "plan")
    plan.remember(own, store)
    assert store.recall("plan", plan._identity(own))
    assert (own / plan.PLAN).read_bytes() == (other / plan.PLAN).read_bytes()
    assert not store.recall("plan", plan._identity(other))
    link = tmp_path / "link"
    link.symlink_to(own)
    assert store.recall("plan", plan._identity(link))


@pytest.mark.parametrize("path", ["\0", "a\0b", "\ud800.py", "\x1b[31m", 3, ["a"]])
def test_a_path_that_is_none(tmp_path, path):
    with pytest.raises(ConfigError):
        plan.read(_written(tmp_path / "plan", source={**SOURCE, "path": path}))


def test_gigabytes_and_pipes_in_place_of_a_plan(tmp_path):
    large = _written(tmp_path / "large")
    os.truncate(large / plan.PLAN, 6 << 30)
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    os.mkfifo(pipe / plan.PLAN)
    for folder in (large, pipe):
        for read in (plan.read, plan._identity):
            with pytest.raises(ConfigError, match="no compression plan"):
                read(folder)


@pytest.mark.parametrize(
    "text",
    ["seed = -1", "seed = 99999999999999999999999", '[[step]]\nname = "prune"\nsparsity = nan', "[step]"],
)
def test_numbers_that_no_recipe_has(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text if "step" in text else f'{text}\n[[step]]\nname = "fold"\n')
    with pytest.raises(ConfigError):
        recipes.read(str(path))


def journal_of(path):
    journal = Journal(path, {"search": "a"}, Setup)
    for number in range(4):
        journal.add(Trial(line=f"prune({number})", target="t", drop=0.1, size=500 + number))
    return journal


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe{", b"[" * 100_000, b"3", b"", b'{"line": "x", "target": "t", "drop": 0.0, "size": -5}'],
)
def test_a_journal_that_was_edited_ends_where_it_is_none(tmp_path, line):
    path = tmp_path / "search.jsonl"
    journal_of(path)
    lines = path.read_bytes().splitlines()
    lines[3] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    journal = Journal(path, {"search": "a"}, Setup)
    assert [t.line for t in journal.known.values()] == ["prune(0)", "prune(1)"]
    assert journal.doubted == 2


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (1, 0), (2, 1), (4, 3)])
def test_a_figure_that_was_edited_is_measured_again(tmp_path, number, kept):
    path = tmp_path / "search.jsonl"
    journal_of(path)
    lines = path.read_text().splitlines()
    lines[number] = (
        lines[number].replace('"drop": 0.1', '"drop": 0.0').replace('"epochs": 0.0', '"epochs": -1')
    )
    path.write_text("\n".join(lines) + "\n")
    assert len(Journal(path, {"search": "a"}, Setup).known) == kept


def test_a_recipe_of_fifty_thousand_steps(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[[step]]\nname = "fold"\n' * 50_000)
    for text in (str(path), ";".join(["fold"] * 50_000)):
        with pytest.raises(ConfigError, match="50,000 steps"):
            recipes.read(text)


@pytest.mark.parametrize(
    "line",
    [
        "prune(sparsity=0.5;training.epochs=inf)",
        "prune(sparsity=0.5;training.epochs=nan)",
        "prune(training.epochs=1e30)",
        "prune(training.rate=nan)",
        "prune(training.rate=inf)",
        "prune(training.weight_decay=nan)",
        "prune(training.weight_decay=-1)",
        "prune(training.patience=-1)",
        "prune(training.l1=-1)",
        "prune(training.temperature=nan)",
        "prune(sparsity=0.5;sparsity=0.9)",
        "distill(temperature=nan)",
        "cluster(values=8;values=8)",
    ],
)
def test_numbers_that_no_training_has(line):
    with pytest.raises(ConfigError):
        recipes.read(line)
